"""From tensors to launches: output memory, shares of the work, gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from zoo.kernels.compression.reference import compression_attention
from zoo.kernels.documents import Documents
from zoo.kernels.full.reference import full_attention
from zoo.kernels.launching import Tile, cdiv, launch, n_processors, next_power_of_2
from zoo.kernels.layout import dense_rows
from zoo.kernels.registration import differentiable, gradients_instead, opaque
from zoo.kernels.shared_intervals import triton as kernels
from zoo.kernels.shared_intervals.tiles import dkv_tiles, dq_tiles, fwd_tiles
from zoo.kernels.window.reference import window_attention


def interval_attention(
    q_BTHD, k_BNKD, v_BNKV, *, q_rope, k_rope, scale, documents, sinks=None, softcap=None, stride=1, block=1, window=0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each query over its interval of keys (see triton.py): o_BTHV and lse_BTH, float32. window 0: none.

    sinks: [H], float32; lse holds them.  softcap: None for none.
    Both outputs carry gradients. A query that sees no key gets zeros, and lse = -inf without sinks.
    """
    start_BT = None if documents is None else documents.start_BT.contiguous()
    tensors = [dense_rows(x) for x in (q_BTHD, k_BNKD, v_BNKV, q_rope, k_rope)]
    attend = _attention.op if torch.compiler.is_compiling() else _attention.eager
    return attend(*tensors, sinks, start_BT, scale, softcap or 0.0, stride, block, window)


class Call:
    """One call as the kernels see it: counts, strides, compile-time constants, and a pointer for every tensor."""

    def __init__(self, q, k, v, q_rope, k_rope, start, do, softcap, stride, block, window):
        self.B, self.T, self.H, D = q.shape
        _, self.N, self.K, V = v.shape
        self.R = 0 if q_rope is None else q_rope.shape[-1]
        self.device, self.dtype, self.softcap, self.window = q.device, q.dtype, softcap, window
        self.long = window == 0 and start is None
        self.slots = block > 1
        self.counts = self.T, self.N, self.B, self.H, self.H // self.K
        self.start = q if start is None else start  # a pointer that is not followed; so are q and k below
        self.tensors = (q, q_rope, k, k_rope, v) if self.R else (q, q, k, k, v)
        strides_qr, strides_kr = (q_rope.stride()[:3], k_rope.stride()[:2]) if self.R else ((0, 0, 0), (0, 0))
        strides_do = () if do is None else do.stride()[:3]
        self.strides = *q.stride()[:3], *strides_qr, *k.stride()[:3], *strides_kr, *v.stride()[:3], *strides_do
        self.constants = _constants(D, self.R, V, stride, block, window > 0, start is not None, softcap > 0, q.dtype)
        padded = self.constants
        self.width = max(padded["DP"] + padded["RP"] * (self.R > 0), padded["VP"])

    def query_grid(self, tile: Tile) -> tuple[int]:
        """Programs that take a tile of queries each."""
        return (cdiv(self.T, tile["BM"]) * self.B * self.H,)

    def key_blocks(self, tile: Tile) -> int:
        """Tiles of keys, over all rows and key heads."""
        return cdiv(self.N, tile["BN"]) * self.B * self.K


@cache
def _constants(D, R, V, stride, block, has_window, has_documents, has_softcap, dtype) -> dict:
    DP, RP, VP = (max(16, next_power_of_2(width)) for width in (D, R, V))
    precision = "ieee" if dtype == torch.float32 else "tf32"
    widths = dict(D=D, R=R, V=V, DP=DP, RP=RP, VP=VP)
    grid = dict(STRIDE=stride, BLOCK=block, HAS_WINDOW=has_window, HAS_DOCUMENTS=has_documents)
    return {**widths, **grid, "PRECISION": precision, "SOFTCAP": has_softcap}


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_rope: torch.Tensor | None,
    k_rope: torch.Tensor | None,
    sinks: torch.Tensor | None,
    start: torch.Tensor | None,
    scale: float,
    softcap: float,
    stride: int,
    block: int,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    call = Call(q, k, v, q_rope, k_rope, start, None, softcap, stride, block, window)
    o, lse = _outputs(q, v)

    pointers = *call.tensors, o, lse, call.start, q if sinks is None else sinks
    arguments = *pointers, scale, softcap, window, *call.counts, *call.strides
    constants = {**call.constants, "SINKS": sinks is not None}
    tiles = fwd_tiles(q.dtype, call.width, window > 0, call.slots)
    launch(kernels._fwd_kernel, call.query_grid, arguments, constants, tiles, q.device)
    return o, lse.transpose(1, 2)


def _forward_fake(q, k, v, q_rope, k_rope, sinks, start, scale, softcap, stride, block, window):
    o, lse = _outputs(q, v)
    return o, lse.transpose(1, 2)


def _backward(
    do: torch.Tensor,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_rope: torch.Tensor | None,
    k_rope: torch.Tensor | None,
    sinks: torch.Tensor | None,
    start: torch.Tensor | None,
    o: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    softcap: float,
    stride: int,
    block: int,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    do = do.contiguous() if 0 in do.stride() else dense_rows(do)  # a sum's gradient is one number, expanded
    call = Call(q, k, v, q_rope, k_rope, start, do, softcap, stride, block, window)
    grads = _gradients(q, k, v, q_rope, k_rope)
    lse = lse.transpose(1, 2).contiguous()  # as the forward kernel laid it out, unless it was moved since
    delta = torch.empty_like(lse)
    dlse_BHT = delta if dlse is None else dlse.transpose(1, 2).contiguous()

    results = o, lse, call.start, do, dlse_BHT, delta, grads[0], grads[3]
    arguments = *call.tensors, *results, scale, softcap, window, *call.counts, *call.strides
    constants = {**call.constants, "HAS_DLSE": dlse is not None}
    tiles = dq_tiles(q.dtype, call.width, call.slots)
    launch(kernels._dq_kernel, call.query_grid, arguments, constants, tiles, q.device)
    _launch_dkv(call, do, lse, delta, grads, scale)
    return *grads, q.new_empty(0) if sinks is None else _gradient_of_sinks(sinks, lse, delta)


def _gradient_of_sinks(sinks_H: torch.Tensor, lse_BHT: torch.Tensor, delta_BHT: torch.Tensor) -> torch.Tensor:
    """That of a score whose key has the value 0: minus its share of the softmax, times delta."""
    return -((sinks_H[:, None] - lse_BHT).exp_() * delta_BHT).sum((0, 2))


def _backward_fake(do, dlse, q, k, v, q_rope, k_rope, sinks, start, o, lse, scale, softcap, stride, block, window):
    return *_gradients(q, k, v, q_rope, k_rope), q.new_empty(0) if sinks is None else torch.empty_like(sinks)


def _launch_dkv(call: Call, do, lse, delta, grads: tuple, scale: float) -> None:
    """dk, dv, dk_rope: as parts, then added, where programs share a block of keys or heads share k_rope."""
    _, dk, dv, _, dk_rope = grads
    tiles = dkv_tiles(call.dtype, call.width, call.long)
    parts = n_parts(call, tiles[0])
    part_dk = dk if parts == 1 else dk.new_empty(parts, *dk.shape, dtype=torch.float32)
    part_dv = dv if parts == 1 else dv.new_empty(parts, *dv.shape, dtype=torch.float32)
    rope_parts = parts * call.K if call.R else 1
    part_dkr = dk_rope if rope_parts == 1 else dk.new_empty(rope_parts, *dk_rope.shape, dtype=torch.float32)

    results = lse, call.start, do, delta, part_dk, part_dkr, part_dv
    numbers = scale, call.softcap, call.window, *call.counts, parts
    arguments = *call.tensors, *results, *numbers, *call.strides

    def grid(tile: Tile) -> tuple[int]:
        return (call.key_blocks(tile) * parts,)

    launch(kernels._dkv_kernel, grid, arguments, call.constants, tiles, call.device)
    if parts > 1 or rope_parts > 1:
        n_k, n_v = (dk.numel(), dv.numel()) if parts > 1 else (0, 0)
        n_kr = dk_rope.numel() if rope_parts > 1 else 0
        sums = part_dk, part_dkr, part_dv, dk, dk_rope, dv, n_k, n_kr, n_v, parts, rope_parts
        n_programs = sum(cdiv(n, _SUM_TILES[0]["SIZE"]) for n in (n_k, n_kr, n_v))
        launch(kernels._sum_parts_kernel, lambda tile: (n_programs,), sums, {}, _SUM_TILES, call.device)


def n_parts(call: Call, tile: Tile) -> int:
    """Programs that share a block of keys: enough for 8 on each processor, but each has at least 4 tiles of queries.

    Whole heads to a program, or a whole number of programs to a head.
    """
    wanted = cdiv(8 * n_processors(call.device), call.key_blocks(tile))
    group = call.H // call.K
    queries = min(call.T, call.window + tile["BN"]) if call.window else cdiv(call.T, 2)
    most = group * queries // (4 * tile["BM"])
    divisors = [parts for parts in range(1, group + 1) if group % parts == 0 and parts >= wanted]
    return max(1, min(divisors[0] if divisors else cdiv(wanted, group) * group, most))


_SUM_TILES = [dict(SIZE=1024)]


def _outputs(q: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    B, T, H, _ = q.shape
    return q.new_empty(B, T, H, v.shape[-1]), q.new_empty(B, H, T, dtype=torch.float32)


def _gradients(q, k, v, q_rope, k_rope) -> Any:
    """Memory for the gradients of q, k, v, q_rope, k_rope, contiguous; empty where there is no rotary part."""
    tensors, layout = (q, k, v, q_rope, k_rope), torch.contiguous_format
    return tuple([q.new_empty(0) if x is None else torch.empty_like(x, memory_format=layout) for x in tensors])


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, q_rope, k_rope, sinks, start, *ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, q_rope, k_rope, sinks, start, *output)
    ctx.set_materialize_grads(False)


def _gradient(ctx, do, dlse, *, compiling: bool):
    *inputs, o, lse = ctx.saved_tensors
    if do is None and dlse is None:
        return (None,) * 12
    do = torch.zeros_like(o) if do is None else do
    backward: Callable = _backward_op if compiling else _backward
    try:
        dq, dk, dv, dq_rope, dk_rope, dsinks = backward(do, dlse, *inputs, o, lse, *ctx.numbers)
    except OutOfResources as error:
        if dlse is not None:  # no operation asks for it
            raise
        return gradients_instead(ctx, error, _reference, (*inputs, *ctx.numbers), do)
    if inputs[3] is None:
        dq_rope = dk_rope = None
    return dq, dk, dv, dq_rope, dk_rope, None if inputs[5] is None else dsinks, *(None,) * 6


def _reference(q, k, v, q_rope, k_rope, sinks, start, scale, softcap, stride, block, window) -> torch.Tensor:
    """What the kernels compute, by the reference of the operation that this is; without the log-sum-exp."""
    documents = None if start is None else Documents(start, q.shape[1])
    shared = {"q_rope": q_rope, "scale": scale, "documents": documents}
    if stride > 1 or block > 1:
        o, _ = compression_attention(q, k, v, k_rope=k_rope, block=block, stride=stride, **shared)
        return o
    shared |= {"sinks": sinks, "softcap": softcap or None}
    if window:
        return window_attention(q, k, v, k_rope=k_rope, window=window, **shared)
    return full_attention(q, k, v, k_rope=k_rope, **shared)


_backward_op = opaque("interval_attention_backward", _backward, _backward_fake)
_attention = differentiable("interval_attention", _forward, _forward_fake, _setup_context, _gradient)
