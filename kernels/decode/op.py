"""Attention to a cache in Triton: from tensors to launches."""

from __future__ import annotations

import math
from functools import cache

import torch

from zoo.kernels.decode import triton as kernels
from zoo.kernels.launching import INTERPRETED, Tile, cdiv, launch, n_processors, next_power_of_2
from zoo.kernels.layout import dense_rows, strides
from zoo.kernels.registration import opaque

FEW = 16  # new tokens of a row: up to so many are decoding, more a long piece
LEAST_ROWS = 16  # of a matrix instruction
SLOTS_PER_SPLIT = 128  # at least: with fewer slots, writing the partial result takes longer than the split saves
MAX_SHORT_SPLITS = 128  # more, up to MAX_SPLITS, only where each keeps LONG_SPLIT slots
MAX_SPLITS = 256
LONG_SPLIT = 512
FEW_PROGRAMS = 8  # query tiles of all rows: eight rows of one latent head, two of four heads
MAX_GRID = 65_535  # programs along the second and third axis of a grid


def cached_attention(
    q, k, v, first, end, *, q_rope, k_rope, scale, sinks, softcap
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `zoo.kernels.decode.cached_attention`."""
    attend = _attend_op if torch.compiler.is_compiling() else _attend
    return attend(q, k, None if v is k else v, q_rope, k_rope, first, end, None, sinks, 0, scale, softcap or 0.0)


def cached_selection_attention(q, k, v, chosen, position, *, selection_block, q_rope, k_rope, scale):
    """As `zoo.kernels.decode.cached_selection_attention`."""
    attend = _attend_op if torch.compiler.is_compiling() else _attend
    tensors = q, k, None if v is k else v, q_rope, k_rope
    return attend(*tensors, position, position, chosen, None, selection_block, scale, 0.0)[0]


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, q_rope: torch.Tensor | None, k_rope: torch.Tensor | None,
    first: torch.Tensor, end: torch.Tensor, chosen: torch.Tensor | None, sinks: torch.Tensor | None, block: int,
    scale: float, softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """o_BTHV and lse_BTH; v None: the keys are the values.  With `chosen`, over those blocks of `block` tokens, up to
    the query's own, for which `first` and `end` are the positions."""
    same = v is None
    q, k, v = dense_rows(q), dense_rows(k), dense_rows(k if v is None else v)
    q_rope, k_rope = dense_rows(q_rope), dense_rows(k_rope)
    first, end = first.contiguous(), end.contiguous()
    (B, T, H, D), (N, J, V) = q.shape, (*k.shape[1:3], v.shape[3])
    R = 0 if q_rope is None else q_rope.shape[-1]
    groups, places, slots = (J, 0, N) if chosen is None else (chosen.shape[2], chosen.shape[3], chosen.shape[3] * block)
    chosen = end if chosen is None else chosen.contiguous()  # a pointer that is not followed; so are q and k below
    long, select = T > FEW, block > 0
    constants = _constants(D, R, V, H // groups, groups, groups // J, block, places, same, long, q.dtype)
    constants = {**constants, "SOFTCAP": softcap > 0, "SINKS": sinks is not None}
    tokens, width = constants["TOKENS"], max(constants["DP"], constants["VP"])
    n_tiles = cdiv(T + (tokens - 1 if select else 0), tokens) * groups  # those of queries that select are shifted
    n_splits = _n_splits(slots, B * n_tiles, width, select, long, q.device)
    tiles = _tiles(q.dtype, width, select, long, B * n_tiles <= FEW_PROGRAMS)

    o, lse = q.new_empty(B, T, H, V), q.new_empty(B, T, H, dtype=torch.float32)
    part_o, part_lse = o, lse
    if n_splits > 1:
        part_o, part_lse = (x.new_empty(n_splits, *x.shape, dtype=torch.float32) for x in (o, lse))
    strides_qr, strides_kr = strides(q_rope, 3), strides(k_rope, 2)
    tensors: tuple = q, q_rope if R else q, k, k_rope if R else k, v, first, end, chosen
    tensors = *tensors, q if sinks is None else sinks, part_o, part_lse
    inner, outer = (scale / softcap, softcap) if softcap else (0.0, scale)
    numbers = inner, outer * math.log2(math.e), B, T, N, H, places, n_splits
    steps = *q.stride()[:3], *strides_qr, *k.stride()[:3], *strides_kr, *v.stride()[:3]
    grid = (n_splits * n_tiles, 1, B) if long else (n_splits, n_tiles, B)
    launch(kernels.split_kernel, lambda tile: grid, (*tensors, *numbers, *steps), constants, tiles, q.device)
    if n_splits > 1:
        _join(part_o, part_lse, o, lse)
    return o, lse


def _attend_fake(q, k, v, q_rope, k_rope, first, end, chosen, sinks, block, scale, softcap):
    return q.new_empty(*q.shape[:3], (k if v is None else v).shape[3]), q.new_empty(q.shape[:3], dtype=torch.float32)


def _join(part_o, part_lse, o, lse) -> None:
    n_splits, n_rows, width = part_o.shape[0], lse.numel(), o.shape[-1]
    splits = next_power_of_2(n_splits)
    tile = _join_tiles(splits, width)
    grid = (n_rows, cdiv(width, tile[0]["WIDTH"]))
    arguments = part_o, part_lse, o, lse, n_rows, n_splits, width
    launch(kernels.join_kernel, lambda tile: grid, arguments, {}, tile, o.device)


@cache
def _join_tiles(splits: int, width: int) -> list[Tile]:
    return [dict(SPLITS=splits, WIDTH=min(64, next_power_of_2(width)), num_warps=4)]


@cache
def _constants(D, R, V, per, groups, shared, block, places, same, long, dtype) -> dict:
    padded, select = next_power_of_2(per), block > 0
    DP, RP, VP = (max(16, next_power_of_2(width)) for width in (D, R, V))
    rows = LEAST_ROWS if select or not long else _long_rows(max(DP, VP), dtype)
    tokens = 1 if select and not long else max(1, rows // padded)
    heads = dict(GROUPS=groups, SHARED=shared, PER=per, PADDED=padded, TOKENS=tokens)
    widths = dict(D=D, R=R, V=V, DP=DP, RP=RP, VP=VP)
    slots = dict(BLOCK=max(1, block), SELECT=select, SAME_KV=same, PLACES=next_power_of_2(places), LONG=long)
    return {**heads, **slots, **widths, "ROWS": max(LEAST_ROWS, tokens * padded), "PRECISION": precision(dtype)}


def _long_rows(width: int, dtype: torch.dtype) -> int:
    """Rows, one for each query and head, of a tile of a long piece.

    Two groups of four warps have 64 rows each. A key is read once for both, and the sums of a group, 64 x 256, fit its
    registers. float32 has no matrix instruction, so it gains nothing from more rows.
    """
    if dtype == torch.float32:
        return LEAST_ROWS
    return 128 if width <= 256 else 32


def precision(dtype: torch.dtype) -> str:
    """How a kernel multiplies matrices of this dtype: float32 exactly, others by tensor cores."""
    return "ieee" if dtype == torch.float32 else "tf32"


@cache
def _n_splits(slots: int, others: int, width: int, select: bool, long: bool, device: torch.device) -> int:
    """Programs that share the slots of a query: enough to fill the processors, each with SLOTS_PER_SPLIT or more.

    At most as many in all as run at once: two on each processor where keys are wide, else four. One more would start
    when the others end, and double the time. Programs of a long piece fill a processor each; there is one for each
    processor, so that partials are few, and no split where the queries fill the processors. Selecting ones are short.
    """
    if INTERPRETED:  # so that tests with few slots have several
        return min(3, cdiv(slots, 16)) if not long or others <= 8 else 1
    if select and not long:
        wanted = cdiv(n_processors(device), others)
    else:
        at_once = 1 if long else 2 if width > 128 else 4
        wanted = at_once * n_processors(device) // others
    most = min(MAX_SPLITS, max(MAX_SHORT_SPLITS, slots // LONG_SPLIT))
    return max(1, min(wanted, cdiv(slots, SLOTS_PER_SPLIT), most))


@cache
def _tiles(dtype: torch.dtype, width: int, select: bool, long: bool, few: bool) -> list[Tile]:
    """Slots of a tile, for keys and values so wide; then less shared memory. As measured on an H200 (docs/log.md), but
    for long pieces, whose tiles are those that fit its registers and two or three times its shared memory.

    few: up to FEW_PROGRAMS query tiles share the processors. Three loads of 64 slots in flight then beat two of 128.
    """
    if INTERPRETED:
        return [dict(BN=32 if long else 16)]
    if long and not select and dtype != torch.float32:
        return [dict(BN=n, num_warps=8, num_stages=stages) for n, stages in ((64, 3), (64, 2), (32, 2), (16, 1))]
    least = dict(BN=16, num_warps=4, num_stages=1)
    if dtype == torch.float32 or width > 256:
        return [dict(BN=32, num_warps=4, num_stages=2), least]
    smaller = [dict(BN=64, num_warps=4, num_stages=2), least]
    if few and not select:
        return [dict(BN=64, num_warps=4, num_stages=3), *smaller]
    return [dict(BN=128, num_warps=8 if select else 4, num_stages=2), *smaller]


_attend_op = opaque("cached_attention", _attend, _attend_fake)
