"""The inverted index and the launches of the kernels that run by key block: dk and dv."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch

from zoo.kernels.launching import cdiv, launch, next_power_of_2
from zoo.kernels.selection import triton_by_entry
from zoo.kernels.selection import triton_by_key as kernels
from zoo.kernels.selection.op_by_query import strides

ROWS_PER_PROGRAM = 8192
ROWS_BY_ENTRY = 2048  # of the kernel by entry, whose programs are small
MAX_CHUNKS = 32  # of one list
LINE = 32  # int32 numbers: 128 bytes, so that the parts of an index are as aligned as tensors of their own


def block_slots(start: torch.Tensor, block: int, max_documents: int) -> tuple[torch.Tensor, torch.Tensor]:
    """With documents: base_BT, the slot of the first block of each token's document, and slot_start_BM, -1 = unused.

    slot_start_BM is a view whose rows do not lie together.
    """
    batch, seq_len = start.shape
    index_BT = torch.arange(seq_len, device=start.device, dtype=torch.int32).expand(batch, -1)
    base_BT = start // block + (start == index_BT).cumsum(1, dtype=torch.int32) - 1
    n_slots = -(-seq_len // block) + max_documents
    position_BT = index_BT - start
    slot_BT = torch.where(position_BT % block == 0, base_BT + position_BT // block, n_slots)
    slot_start_BM = torch.full((batch, n_slots + 1), -1, device=start.device, dtype=torch.int32)
    return base_BT.contiguous(), slot_start_BM.scatter_(1, slot_BT.long(), index_BT)[:, :n_slots]


class Index(NamedTuple):
    """The inverted index of the choice of some query groups.

    entry: int32 [n], the query group of each entry of the lists, as first token * 32 + number of tokens.
    place: int32 [n], its place in `chosen`.  begin: int32, the first entry of each list.
    list_of: int32, the list of each chunk, -1 for an empty one.  slot_start: int32 [B, n_slots], with documents.
    chunk: kernels.entries of a chunk.  group_rows: rows of an entry; the last ones may stand for none.
    """

    entry: torch.Tensor
    place: torch.Tensor
    begin: torch.Tensor
    list_of: torch.Tensor
    slot_start: torch.Tensor | None
    n_slots: int
    chunk: int
    group_rows: int


class Extent(NamedTuple):
    """How large the index of n places is, and where it lies in a `room`: one int32 tensor for all of it but `entry`."""

    n: int
    n_slots: int  # of a row
    n_lists: int
    chunk: int
    n_starts: int  # numbers of slot_start

    def lengths(self) -> list[int]:
        """Numbers of place, begin, list_of and slot_start, each followed by those up to the next multiple of LINE."""
        parts = self.n, self.n_lists + 1, self.n // self.chunk + self.n_lists, self.n_starts
        return [length for part in parts for length in (part, -part % LINE)]


def extent(
    batch: int, n_here: int, size: dict, seq_len: int, max_documents: int | None, rows: int = ROWS_PER_PROGRAM
) -> Extent:
    """Of the index of n_here query groups of each row.  max_documents: None without documents.  rows: of a chunk."""
    n, block = batch * n_here * size["K"] * size["S"], size["BLOCK"]
    n_slots = cdiv(seq_len, block) + (max_documents or 0)
    chunk = chunk_entries(n, rows // rows_of_group(size), n_here * size["S"] * block // seq_len)
    n_starts = 0 if max_documents is None else batch * n_slots
    return Extent(n, n_slots, batch * size["K"] * n_slots, chunk, n_starts)


def inverted_index(
    chosen, first, start, size: dict, seq_len, max_documents, g0=0, n_groups=None, *, rows=ROWS_PER_PROGRAM, room=None
) -> Index:
    """The index of `chosen`, which holds query groups g0 and on of the n_groups of each row (all, if None).

    rows: of a chunk, at most.  room: what `kept_index` takes in place of building the index again; None = new memory.
    Raises ValueError for 2^31 places or more: the index counts them in 32 bits.
    """
    batch, n_here, K, S = chosen.shape
    n, device, block, query_group = chosen.numel(), chosen.device, size["BLOCK"], size["QUERY_GROUP"]
    if n >= 2**31:
        raise ValueError(f"selection_attention: a choice of at most 2^31 - 1 blocks; found {n}, {list(chosen.shape)}.")
    of = extent(batch, n_here, size, seq_len, None if first is None else max_documents, rows)
    _, n_slots, n_lists, chunk, _ = of
    lengths = of.lengths()
    if room is None:
        room = torch.empty(sum(lengths), device=device, dtype=torch.int32)
    place, _, begin, _, list_of, _, slot_start, _ = room.split(lengths)
    base = None
    if first is None:
        slot_start = None
    else:
        base, found = block_slots(start, block, max_documents)
        slot_start = slot_start.view(batch, n_slots).copy_(found)
    list_of.fill_(-1)
    narrow = n_lists < 2**16  # the sort then takes half the passes
    key = torch.empty(n, device=device, dtype=torch.int16 if narrow else torch.int32)
    shared = dict(K=K, S=S, DOCUMENTS=first is not None, LOWEST=-(2**15) if narrow else 0)
    n_tiles, n_programs = cdiv(n, 1024), cdiv(n, 1024) + cdiv(n_lists + 1, 128)
    groups = n_groups or n_here, g0, n_here
    arguments: tuple = chosen, first, start, base, key, n, seq_len, *groups, n_slots, n_lists
    constants = dict(shared, BLOCK=block, QUERY_GROUP=query_group)
    launch(kernels._keys_kernel, lambda tile: (n_tiles,), arguments, constants, _KEYS_TILES, device)
    key, order = torch.sort(key, stable=True)
    entry = torch.empty(n, device=device, dtype=torch.int32)
    arguments = key, order, first, start, entry, place, begin, list_of, n, seq_len, *groups, n_lists
    constants = dict(QUERY_GROUP=query_group, CHUNK=chunk, MAX=MAX_CHUNKS, **shared)
    launch(
        kernels._index_kernel,
        lambda tile: (n_programs,),
        (*arguments, n.bit_length() + 1),
        constants,
        _INDEX_TILES,
        device,
    )
    return Index(entry, place, begin, list_of, slot_start, n_slots, chunk, rows_of_group(size))


def kept_index(room, chosen, first, start, size: dict, seq_len, max_documents, g0, n_groups) -> Index:
    """The index that `inverted_index` wrote into `room`, for the same arguments. `entry` is computed from `place`."""
    batch, n_here, K, S = chosen.shape
    of = extent(batch, n_here, size, seq_len, None if first is None else max_documents)
    place, _, begin, _, list_of, _, slot_start, _ = room.split(of.lengths())
    entry = torch.empty_like(place)
    arguments = place, first, start, entry, of.n, seq_len, n_groups, g0, n_here
    constants = dict(K=K, S=S, QUERY_GROUP=size["QUERY_GROUP"], DOCUMENTS=first is not None)
    launch(kernels._entries_kernel, lambda tile: (cdiv(of.n, 1024),), arguments, constants, _KEYS_TILES, room.device)
    slot_start = None if first is None else slot_start.view(batch, of.n_slots)
    return Index(entry, place, begin, list_of, slot_start, of.n_slots, of.chunk, rows_of_group(size))


_KEYS_TILES = [dict(TILE=1024)]
_INDEX_TILES = [dict(TILE=1024, LISTS=128)]


def key_tiles(size: dict, itemsize: int) -> list[dict]:
    """Tile and launch options of the kernel that runs by key block: as measured on an H200, then for less memory."""
    rows = size["QUERY_GROUP"] * size["G"]
    return _key_tiles(min(64, size["BLOCK"]), max(size["DP"], size["VP"]), size["R"] > 0, rows >= 4, itemsize)


@cache
def _key_tiles(keys: int, widest: int, rotary: bool, scalar: bool, itemsize: int) -> list[dict]:
    """scalar: kernels.entries have four rows or more, so that a tile has up to 16 of them."""
    common = dict(KEYS=keys, FLIP=False, FLIP_S=False, SCALAR=False, AHEAD=False)
    small = dict(common, ROWS=16, KEYS=16, num_warps=4, num_stages=1)
    if itemsize == 4 or widest > 128:
        return [dict(small, KEYS=min(16 if itemsize == 4 else 32, keys)), small]
    if keys < 32:
        best = dict(common, ROWS=128, FLIP_S=True, num_warps=2, num_stages=2)
        if widest <= 64:
            best |= dict(ROWS=64, num_stages=3, maxnreg=160)
        return [best, small]
    if keys == 64 and widest <= 64 and not rotary:
        return [dict(common, ROWS=128, FLIP=True, num_warps=4, num_stages=2), small]
    return [dict(common, ROWS=64, FLIP=True, SCALAR=scalar, num_warps=4, num_stages=2), small]


def chunk_entries(n: int, most: int, average: int) -> int:
    """Entries of a chunk: `most`, fewer while that leaves under 2,048 programs; not far under an average list, so that
    the partials stay within a few times the keys and values."""
    return next_power_of_2(max(1, min(most, n // 2048), average // 4))


def rows_of_group(size: dict) -> int:
    """Rows that an entry takes in a tile; the last ones may stand for none."""
    return next_power_of_2(size["QUERY_GROUP"] * size["G"])


def by_entry(size: dict, itemsize: int) -> bool:
    """Whether the kernel of one entry a tile computes dk and dv: for the shapes that it was measured with.

    Kernels for 64K tokens and 512 keys a query on an H200, across entries -> by entry, ms. Heads 64 wide: 16 rows
    1.61 -> 1.21, 32 rows 3.3 -> 2.5 (with 32 rotary channels 4.1 -> 3.3), 64 rows 6.5 -> 6.3, which is not worth a
    kernel; 128 wide: 16 rows 4.3 -> 2.6, 32 rows 10.2 -> 6.2, 64 rows 22 -> 14. 1,024 keys, 16 rows: 64 + 32 wide
    3.9 -> 3.0, 128 + 64 wide 12.9 -> 7.1. Wider rotary parts do not fit in registers.
    """
    narrow, rows = max(size["DP"], size["VP"]) <= 64, rows_of_group(size)
    most = {16: 160, 32: 160} if narrow else {16: 320, 32: 256, 64: 256}  # channels of keys, values and rotary part
    channels = size["DP"] + size["VP"] + (size["RP"] if size["R"] else 0)
    widest = max(size["DP"], size["VP"])
    return size["BLOCK"] == 16 and itemsize == 2 and widest <= 128 and channels <= most.get(rows, 0)


def entry_tiles(size: dict) -> list[dict]:
    """Launch options of the kernel by entry: as measured on an H200, then for less memory."""
    return _entry_tiles(rows_of_group(size), max(size["DP"], size["VP"]) <= 64, size["R"] > 0)


@cache
def _entry_tiles(rows: int, narrow: bool, rotary: bool) -> list[dict]:
    """Keys stay in registers where they fit beside the sums; two warps serve a block whose rows do not fit in one."""
    warps = 1 if rows == 16 or (rows == 32 and narrow) else 2
    best = dict(KEYS=16, ENTRIES=1, KEEP=narrow, num_warps=warps, num_stages=3)
    small = dict(best, num_stages=1)
    if rows == 16 and narrow and not rotary:
        best |= dict(ENTRIES=2, maxnreg=168)
    return [best, small]


def backward(q, k, v, q_rope, k_rope, chosen, first, start, lse, delta, do, max_documents, size: dict, scale):
    """dk, dv, dk_rope (None without rotary part)."""
    rows = ROWS_BY_ENTRY if by_entry(size, q.element_size()) else ROWS_PER_PROGRAM
    index = inverted_index(chosen, first, start, size, q.shape[1], max_documents, rows=rows)
    tensors = q, k, v, q_rope, k_rope, lse, delta, do, index
    if by_entry(size, q.element_size()):
        part = partial_sums_by_entry(*tensors, start, size, scale)
    else:
        part = partial_sums(*tensors, (None,) * 4, size, key_tiles(size, q.element_size()), scale)
    gradients = (
        torch.empty_like(k, memory_format=CONTIGUOUS),
        torch.empty_like(v, memory_format=CONTIGUOUS),
        torch.empty_like(k_rope, memory_format=CONTIGUOUS) if size["R"] else None,
    )
    add_up(part, index, start, gradients, size, q.shape[1], add=False)
    return gradients


CONTIGUOUS = torch.contiguous_format


def partial_sums(q, k, v, q_rope, k_rope, lse, delta, do, index: Index, parts_q, size: dict, tiles, scale):
    """dk | dv | dk_rope of each chunk, float32. parts_q: where dq's partial results go (part and weight, of the rotary
    part too), or None four times."""
    part, constants = _partial_of_keys(index, size, q.device)
    constants |= dict(DQ=parts_q[0] is not None)
    arguments = (
        q, k, v, q_rope, k_rope, do, lse, delta, *index[:5], part, *parts_q,
        *_numbers(q, k, v, q_rope, k_rope, do, index, scale),
    )  # fmt: skip
    grid = lambda tile: (len(part), size["BLOCK"] // tile["KEYS"])  # noqa: E731
    launch(kernels._selection_bwd_dkdv_kernel, grid, arguments, constants, tiles, q.device)
    return part


def partial_sums_by_entry(q, k, v, q_rope, k_rope, lse, delta, do, index: Index, start, size: dict, scale):
    """As `partial_sums`, without dq, for the shapes that `by_entry` names."""
    part, constants = _partial_of_keys(index, size, q.device)
    group = size["QUERY_GROUP"]
    ragged = size["DOCUMENTS"] or q.shape[1] % group > 0 or index.group_rows != group * size["G"]
    constants |= dict(RAGGED=ragged)
    arguments = (
        q, k, v, q_rope, k_rope, do, lse, delta,
        index.entry, index.begin, index.list_of, index.slot_start, start, part,
        *_numbers(q, k, v, q_rope, k_rope, do, index, scale),
    )  # fmt: skip
    grid = lambda tile: (len(part), size["BLOCK"] // tile["KEYS"])  # noqa: E731
    kernel = triton_by_entry._selection_bwd_dkdv_by_entry_kernel
    launch(kernel, grid, arguments, constants, entry_tiles(size), q.device)
    return part


def _partial_of_keys(index: Index, size: dict, device) -> tuple[torch.Tensor, dict]:
    """Room for the partial sums [chunks, BLOCK, D + V + R], float32, and the constants of the kernels that write it."""
    width = size["D"] + size["V"] + size["R"]
    part = torch.empty(len(index.list_of), size["BLOCK"], width, device=device, dtype=torch.float32)
    constants = {name: n for name, n in size.items() if name not in ("S", "SP", "QUERY_GROUP")}
    return part, constants | dict(CHUNK=index.chunk, MAX=MAX_CHUNKS, GROUP_ROWS=index.group_rows)


def _numbers(q, k, v, q_rope, k_rope, do, index: Index, scale) -> tuple:
    return (
        *strides(q, 3), *strides(k, 3), *strides(v, 3), *strides(q_rope, 3), *strides(k_rope, 2), *strides(do, 3),
        q.shape[1], index.n_slots, scale, scale * math.log2(math.e),
    )  # fmt: skip


def add_up(part, index: Index, start, gradients, size: dict, seq_len: int, *, add: bool) -> None:
    """Sum the chunks into dk, dv and dk_rope; with `add` onto what they hold."""
    K, D, V, R, BLOCK = (size[name] for name in ("K", "D", "V", "R", "BLOCK"))
    constants = dict(K=K, D=D, V=V, R=R, BLOCK=BLOCK, DOCUMENTS=size["DOCUMENTS"])
    constants |= dict(CHUNK=index.chunk, MAX=MAX_CHUNKS, ADD=add)
    n_tiles, tiles = sum_tiles(BLOCK, D, V, R)
    arguments = part, index.begin, index.slot_start, start, *gradients, seq_len, index.n_slots
    n_lists = len(index.begin) - 1
    launch(kernels._sum_chunks_kernel, lambda tile: (n_lists, n_tiles), arguments, constants, tiles, part.device)


@cache
def sum_tiles(selection_block: int, *widths: int) -> tuple[int, list[dict]]:
    """How many tiles of columns cover dk, dv and dk_rope, and how wide they are: 64, less where blocks are long."""
    most = 64 if selection_block <= 64 else 32
    tiles = [min(most, next_power_of_2(max(1, width))) for width in widths]
    n = sum(cdiv(width, tile) for width, tile in zip(widths, tiles, strict=True))
    return n, [dict(zip(("TILE_D", "TILE_V", "TILE_R"), tiles, strict=True))]
