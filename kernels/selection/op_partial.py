"""Launches of forward and dq by key block, a workspace of partial results at a time.

Each piece of the batch has an inverted index. To build it costs a sort and several launches, so forward keeps it for
backward: 4 bytes for each place of the choice, which is an int32 too and is kept as well, and tables of the lists. For
NSA at 340M, 4 rows of 32K or 16 of 8K, these are 32.1 MiB a layer, and the output is 256 MiB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch

from zoo.kernels.launching import cdiv, launch, next_power_of_2
from zoo.kernels.selection import op_by_key
from zoo.kernels.selection import triton_partial as kernels
from zoo.kernels.selection.op_by_key import MAX_CHUNKS
from zoo.kernels.selection.op_by_query import constants as sizes_of
from zoo.kernels.selection.op_by_query import statistics_shape, strides

WORKSPACE = 2**30  # bytes of partials at a time


class Piece(NamedTuple):
    """Rows b0 to b1 of the batch, query groups g0 to g1 of each: all of them, or those of one row."""

    b0: int
    b1: int
    g0: int
    g1: int


def pieces(batch: int, n_groups: int, bytes_of_group: int) -> list[Piece]:
    """As few as WORKSPACE allows. Parts of a row begin at multiples of 16 groups, for which Triton compiles once."""
    most = max(16, WORKSPACE // bytes_of_group)  # groups
    if n_groups <= most:
        step = most // n_groups
        return [Piece(b, min(b + step, batch), 0, n_groups) for b in range(0, batch, step)]
    step = cdiv(cdiv(n_groups, cdiv(n_groups, most)), 16) * 16  # of one length, nearly
    return [Piece(b, b + 1, g, min(g + step, n_groups)) for b in range(batch) for g in range(0, n_groups, step)]


def plan_of(batch: int, n_groups: int, size: dict, dtype: torch.dtype) -> list[Piece]:
    """The pieces of forward and of backward alike, so that they can share an index; the wider partials count."""
    keys, width = key_width(size, dtype.itemsize), max(size["V"], size["D"] + size["R"])
    return pieces(batch, n_groups, _bytes_of_group(size, keys, width, dtype))


def kept_lengths(plan: list[Piece], size: dict, seq_len: int, max_documents: int) -> list[int]:
    """Numbers that backward needs of the index of each piece, int32."""
    documents = max_documents if size["DOCUMENTS"] else None
    extents = (op_by_key.extent(p.b1 - p.b0, p.g1 - p.g0, size, seq_len, documents) for p in plan)
    return [sum(extent.lengths()) for extent in extents]


class Partials(NamedTuple):
    """part: [places, pieces of a block, rows of a query group, width].

    weight: float32, without the width: what a partial counts in the sum.  total: the sums of exponentials, for outputs;
    weight is the largest score until `kernels._weights_kernel` has run.
    """

    part: torch.Tensor
    weight: torch.Tensor
    total: torch.Tensor | None


def partial_dtype(dtype: torch.dtype) -> torch.dtype:
    """float16 where it is more exact than the result, float32 elsewhere."""
    return torch.float16 if dtype == torch.bfloat16 else torch.float32


def _partials(n_places: int, keys: int, size: dict, width: int, like: torch.Tensor, *, of_output: bool) -> Partials:
    shape = n_places, size["BLOCK"] // keys, op_by_key.rows_of_group(size)
    part = torch.empty(*shape, width, device=like.device, dtype=partial_dtype(like.dtype))
    statistics = torch.empty(1 + of_output, *shape, device=like.device, dtype=torch.float32)
    return Partials(part, statistics[0], statistics[1] if of_output else None)


def _bytes_of_group(size: dict, keys: int, width: int, dtype: torch.dtype) -> int:
    rows = op_by_key.rows_of_group(size)
    return size["K"] * size["S"] * (size["BLOCK"] // keys) * rows * width * partial_dtype(dtype).itemsize


def _of(piece: Piece, *tensors):
    """The piece's rows of the batch."""
    return [None if x is None else x[piece.b0 : piece.b1] for x in tensors]


def _rooms(kept: torch.Tensor, plan: list[Piece], lengths: list[int]) -> Sequence[torch.Tensor | None]:
    """Of each piece: its part of `kept`, or None where nothing is kept."""
    return kept.split(lengths) if lengths else [None] * len(plan)


def _combine(partials, chosen, first, start, out, lse, piece, n_groups, size, factor) -> None:
    """Write out and, of outputs, lse."""
    part, weight, total = partials
    n_pieces, group_rows, width = part.shape[1:]
    n, places = chosen.shape[0] * chosen.shape[1] * size["K"], next_power_of_2(size["S"] * n_pieces)
    names = "K", "G", "S", "BLOCK", "QUERY_GROUP", "DOCUMENTS"
    constants = {name: size[name] for name in names} | dict(GROUP_ROWS=group_rows, PIECES=n_pieces)
    numbers = n, out.shape[1], n_groups, piece.g0, piece.g1 - piece.g0
    if lse is not None:
        launch(
            kernels._weights_kernel, lambda tile: (cdiv(n, tile["GROUPS"]),),
            (weight, total, chosen, first, start, lse, *numbers), dict(constants, PLACES=places),
            weight_tiles(places * group_rows), out.device,
        )  # fmt: skip
    constants |= dict(WIDTH=width, PADDED=next_power_of_2(width))
    launch(
        kernels._combine_kernel, lambda tile: (cdiv(n * group_rows, tile["ROWS"]),),
        (part, weight, chosen, first, start, out, *numbers, factor), constants,
        combine_tiles(constants["PADDED"]), out.device,
    )  # fmt: skip


@cache
def weight_tiles(of_group: int) -> list[dict]:
    """of_group: partial rows of a query group and kv head."""
    return [dict(GROUPS=max(1, 1024 // of_group), num_warps=4)]


@cache
def combine_tiles(width: int) -> list[dict]:
    """width: channels of a value head, padded."""
    return [dict(ROWS=max(16, min(64, 4096 // width)), UNROLL=8, num_warps=4)]


def key_width(size: dict, itemsize: int) -> int:
    """Keys of a tile: the whole block where its keys and values take up to 32 KB, 64 at most."""
    width = (size["DP"] + size["VP"] + (size["RP"] if size["R"] else 0)) * itemsize
    keys = min(64, size["BLOCK"])
    while keys > 16 and keys * width > 2**15:
        keys //= 2
    return keys


def forward_tiles(size: dict, itemsize: int, keys: int) -> list[dict]:
    """Tiles of the forward kernel, best first.  keys: of a tile, as `key_width` says."""
    return _forward_tiles(keys, max(size["DP"], size["VP"]), itemsize)


@cache
def _forward_tiles(keys: int, widest: int, itemsize: int) -> list[dict]:
    """As measured on an H200, then for less shared memory."""
    small = dict(ROWS=16, KEYS=keys, num_warps=4, num_stages=1)
    if itemsize == 4 or widest > 128:
        return [small]
    return [dict(ROWS=128, KEYS=keys, num_warps=4, num_stages=3 if widest <= 64 else 2), small]


def backward_tiles(size: dict, itemsize: int, keys: int) -> list[dict]:
    """Tiles of the backward kernel, best first.  keys: of a tile, as `key_width` says."""
    return _backward_tiles(keys, max(size["DP"], size["VP"]), size["R"] > 0, itemsize)


@cache
def _backward_tiles(keys: int, widest: int, rotary: bool, itemsize: int) -> list[dict]:
    """As measured on an H200, then for less shared memory.

    128 rows of 64 channels take 113 KB, of which a multiprocessor holds two to the byte: no branch goes into that loop,
    because its condition would be one number more in shared memory.
    """
    common = dict(KEYS=keys, FLIP=False, FLIP_S=False, SCALAR=False, AHEAD=False)
    small = dict(common, ROWS=16, num_warps=4, num_stages=1)
    if itemsize == 4 or widest > 128:
        return [small]
    middle = dict(common, ROWS=64, num_warps=4, num_stages=2)
    if widest > 64 or rotary:
        return [middle, small]
    return [dict(middle, ROWS=128, FLIP=keys >= 32, AHEAD=True), middle, small]


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_rope: torch.Tensor | None, k_rope: torch.Tensor | None,
    chosen: torch.Tensor, first: torch.Tensor | None, start: torch.Tensor | None, sizes: list[int], scale: float,
    keeps: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """o, the log-sum-exp, in base 2, and with `keeps` the inverted indices for backward, int32 (else empty)."""
    B, T, H, _ = q.shape
    selection_block, query_group, max_documents = sizes
    size = sizes_of(q, k, v, q_rope, chosen, selection_block, query_group, first is not None)
    itemsize, n_groups = q.element_size(), chosen.shape[1]
    keys = key_width(size, itemsize)
    o = torch.empty(B, T, H, size["V"], device=q.device, dtype=v.dtype)
    lse = torch.empty(statistics_shape(q, k), device=q.device, dtype=torch.float32)
    plan = plan_of(B, n_groups, size, q.dtype)
    lengths = kept_lengths(plan, size, T, max_documents) if keeps else []
    kept = torch.empty(sum(lengths), device=q.device, dtype=torch.int32)
    for piece, room in zip(plan, _rooms(kept, plan, lengths), strict=True):
        q_, k_, v_, qr_, kr_, chosen_, first_, start_, o_, lse_ = _of(
            piece, q, k, v, q_rope, k_rope, chosen, first, start, o, lse
        )
        chosen_ = chosen_[:, piece.g0 : piece.g1]
        which = chosen_, first_, start_, size, T, max_documents, piece.g0, n_groups
        index = op_by_key.inverted_index(*which, room=room)
        partials = _partials(chosen_.numel(), keys, size, size["V"], v, of_output=True)
        constants = {name: n for name, n in size.items() if name not in ("S", "SP", "QUERY_GROUP")}
        constants |= dict(CHUNK=index.chunk, MAX=MAX_CHUNKS, GROUP_ROWS=index.group_rows)
        arguments = (
            q_, k_, v_, qr_, kr_, *index[:5], *partials,
            *strides(q, 3), *strides(k, 3), *strides(v, 3), *strides(q_rope, 3), *strides(k_rope, 2),
            T, index.n_slots, scale * math.log2(math.e),
        )  # fmt: skip
        grid = lambda tile, index=index: (len(index.list_of), selection_block // tile["KEYS"])  # noqa: E731
        tiles = forward_tiles(size, itemsize, keys)
        launch(kernels._selection_fwd_by_key_kernel, grid, arguments, constants, tiles, q.device)
        _combine(partials, chosen_, first_, start_, o_, lse_, piece, n_groups, size, 1.0)
    return o, lse, kept


def backward(q, k, v, q_rope, k_rope, chosen, first, start, o, lse, do, sizes: list[int], scale: float, kept):
    """dq, dq_rope, dk, dv, dk_rope; those of the rotary part are None without one.

    kept: of forward; if it is empty, the indices are built again.
    """
    B, T, H, D = q.shape
    selection_block, query_group, max_documents = sizes
    size = sizes_of(q, k, v, q_rope, chosen, selection_block, query_group, first is not None)
    itemsize, n_groups, R = q.element_size(), chosen.shape[1], size["R"]
    keys = key_width(size, itemsize)
    delta = _delta(o, do, lse, size)
    dq = torch.empty(B, T, H, D, device=q.device, dtype=q.dtype)
    dq_rope = torch.empty(B, T, H, R, device=q.device, dtype=q.dtype) if R else None
    plan = plan_of(B, n_groups, size, q.dtype)
    lengths = kept_lengths(plan, size, T, max_documents) if kept.numel() else []
    in_parts = plan[0].g1 < n_groups  # of a row: their sums are kept in float32
    layout, dtype = torch.contiguous_format, torch.float32 if in_parts else None
    gradients = [None if x is None else torch.empty_like(x, memory_format=layout, dtype=dtype) for x in (k, v, k_rope)]
    for piece, room in zip(plan, _rooms(kept, plan, lengths), strict=True):
        q_, k_, v_, qr_, kr_, chosen_, first_, start_, lse_, delta_, do_, dq_, dqr_ = _of(
            piece, q, k, v, q_rope, k_rope, chosen, first, start, lse, delta, do, dq, dq_rope
        )
        chosen_ = chosen_[:, piece.g0 : piece.g1]
        which = chosen_, first_, start_, size, T, max_documents, piece.g0, n_groups
        index = op_by_key.inverted_index(*which) if room is None else op_by_key.kept_index(room, *which)
        of_q = _partials(chosen_.numel(), keys, size, D, q, of_output=False)
        of_rope = _partials(chosen_.numel(), keys, size, R, q, of_output=False) if R else (None,) * 3
        part = op_by_key.partial_sums(
            q_, k_, v_, qr_, kr_, lse_, delta_, do_, index, (*of_q[:2], *of_rope[:2]), size,
            backward_tiles(size, itemsize, keys), scale,
        )  # fmt: skip
        op_by_key.add_up(part, index, start_, _of(piece, *gradients), size, T, add=piece.g0 > 0)
        where = piece, n_groups, size, scale
        _combine(of_q, chosen_, first_, start_, dq_, None, *where)
        if R:
            _combine(of_rope, chosen_, first_, start_, dqr_, None, *where)
    dk, dv, dk_rope = (None if x is None else x.to(q.dtype) for x in gradients)
    return dq, dq_rope, dk, dv, dk_rope


def _delta(o, do, lse, size: dict) -> torch.Tensor:
    delta = torch.empty_like(lse)
    n = lse.numel()
    constants = {name: size[name] for name in ("K", "G", "V", "VP")}
    arguments = o, do, delta, *strides(do, 3), n, o.shape[1]
    launch(kernels._delta_kernel, lambda tile: (cdiv(n, tile["ROWS"]),), arguments, constants, _DELTA_TILES, o.device)
    return delta


_DELTA_TILES = [dict(ROWS=64, num_warps=4)]
