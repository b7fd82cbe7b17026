"""Mean of each compression block, fused: tokens in, slots out, without the [slots, block] tensor in between.

x is read as [B, T, C], with C all channels of a token, side by side. Forward gathers the tokens of a slot; backward
gathers the slots of a token (block / stride of them), so nothing is added atomically. A launch serves up to three
tensors, as pointers x0..x2 with C0..C2 channels, 0 if there is none: keys, values and rotary keys of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import triton
import triton.language as tl

from zoo.kernels.documents import Documents, n_slots
from zoo.kernels.launching import cdiv, launch, next_power_of_2
from zoo.kernels.layout import is_flat
from zoo.kernels.registration import differentiable, opaque

_MOST = 3


def mean_pool(xs: list[torch.Tensor], *, block: int, stride: int, documents: Documents | None) -> list[torch.Tensor]:
    """Each x [B, T, ...] to [B, N, ...]; empty slots are zeros."""
    start_BT = None if documents is None else documents.start_BT.contiguous()
    pooled = []
    for i in range(0, len(xs), _MOST):
        some = xs[i : i + _MOST]
        absent = [None] * (_MOST - len(some))
        pooled += _mean_pool(*some, *absent, start_BT, block, stride)[: len(some)]
    return pooled


@triton.jit
def _fwd_kernel(
    x0, x1, x2, out0, out1, out2, start, x0_b, x0_t, x1_b, x1_t, x2_b, x2_t, C0, C1, C2, T, N,
    STRIDE: tl.constexpr, STRIDE_PADDED: tl.constexpr, BLOCK: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
    SLOTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    i_b, i_c = tl.program_id(2).to(tl.int64), tl.program_id(1)
    o_n = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    if HAS_DOCUMENTS:  # of the tokens [n * stride, (n + 1) * stride), at most one begins a whole block of its document
        o_s = tl.arange(0, STRIDE_PADDED)
        o_t = o_n[:, None] * STRIDE + o_s[None, :]
        whole = (o_s < STRIDE)[None, :] & (o_t + BLOCK <= T)
        b_start = tl.load(start + i_b * T + o_t, mask=whole, other=0)
        b_last = tl.load(start + i_b * T + o_t + BLOCK - 1, mask=whole, other=-1)
        whole = whole & (b_start == b_last) & ((o_t - b_start) % STRIDE == 0)
        b_first = tl.max(tl.where(whole, o_t, -1), 1)
    else:
        b_first = tl.where(o_n * STRIDE + BLOCK <= T, o_n * STRIDE, -1)
    tiles0, tiles1 = tl.cdiv(C0, CHANNELS), tl.cdiv(C1, CHANNELS)
    if i_c < tiles0:
        _pool(x0 + i_b * x0_b, x0_t, out0 + i_b * N * C0, C0, i_c, b_first, o_n, N, BLOCK, SLOTS, CHANNELS)
    elif i_c < tiles0 + tiles1:
        _pool(x1 + i_b * x1_b, x1_t, out1 + i_b * N * C1, C1, i_c - tiles0, b_first, o_n, N, BLOCK, SLOTS, CHANNELS)
    else:
        i_c -= tiles0 + tiles1
        _pool(x2 + i_b * x2_b, x2_t, out2 + i_b * N * C2, C2, i_c, b_first, o_n, N, BLOCK, SLOTS, CHANNELS)


@triton.jit
def _pool(
    x, x_t, out, C, i_c, b_first, o_n, N, BLOCK: tl.constexpr, SLOTS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """The slots o_n, whose blocks begin at tokens b_first (-1: empty), of the i_c-th tile of channels."""
    o_c = i_c * CHANNELS + tl.arange(0, CHANNELS)
    mask = (b_first >= 0)[:, None] & (o_c < C)[None, :]
    p_x = x + b_first.to(tl.int64)[:, None] * x_t + o_c[None, :]
    b_sum = tl.zeros([SLOTS, CHANNELS], tl.float32)
    for i in range(BLOCK):
        b_sum += tl.load(p_x + i * x_t, mask=mask, other=0.0).to(tl.float32)
    p_out = out + o_n.to(tl.int64)[:, None] * C + o_c[None, :]
    tl.store(p_out, (b_sum / BLOCK).to(out.dtype.element_ty), mask=(o_n < N)[:, None] & (o_c < C)[None, :])


@triton.jit
def _bwd_kernel(
    dout0, dout1, dout2, dx0, dx1, dx2, start, d0_b, d0_n, d1_b, d1_n, d2_b, d2_n, C0, C1, C2, T, N,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    i_b, i_c = tl.program_id(2).to(tl.int64), tl.program_id(1)
    o_t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    start += i_b * T
    tiles0, tiles1 = tl.cdiv(C0, CHANNELS), tl.cdiv(C1, CHANNELS)
    if i_c < tiles0:
        _spread(dout0 + i_b * d0_b, d0_n, dx0 + i_b * T * C0, C0, i_c, start, o_t, T,
                STRIDE, BLOCK, HAS_DOCUMENTS, TOKENS, CHANNELS)  # fmt: skip
    elif i_c < tiles0 + tiles1:
        _spread(dout1 + i_b * d1_b, d1_n, dx1 + i_b * T * C1, C1, i_c - tiles0, start, o_t, T,
                STRIDE, BLOCK, HAS_DOCUMENTS, TOKENS, CHANNELS)  # fmt: skip
    else:
        _spread(dout2 + i_b * d2_b, d2_n, dx2 + i_b * T * C2, C2, i_c - tiles0 - tiles1, start, o_t, T,
                STRIDE, BLOCK, HAS_DOCUMENTS, TOKENS, CHANNELS)  # fmt: skip


@triton.jit
def _spread(
    dout, d_n, dx, C, i_c, start, o_t, T,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of tokens o_t, in the i_c-th tile of channels: that of the blocks which hold them."""
    o_c = i_c * CHANNELS + tl.arange(0, CHANNELS)
    b_start = o_t * 0
    if HAS_DOCUMENTS:
        b_start = tl.load(start + o_t, mask=o_t < T, other=0)
    b_position = o_t - b_start
    b_sum = tl.zeros([TOKENS, CHANNELS], tl.float32)
    for i in range((BLOCK + STRIDE - 1) // STRIDE):
        b_block = b_position // STRIDE - i
        b_last = b_start + b_block * STRIDE + BLOCK - 1
        covers = (b_block >= 0) & (b_last >= o_t) & (b_last < T)
        if HAS_DOCUMENTS:
            covers = covers & (tl.load(start + b_last, mask=covers, other=-1) == b_start)
        b_slot = (b_start // STRIDE + b_block).to(tl.int64)
        p_dout = dout + b_slot[:, None] * d_n + o_c[None, :]
        b_sum += tl.load(p_dout, mask=covers[:, None] & (o_c < C)[None, :], other=0.0).to(tl.float32)
    p_dx = dx + o_t.to(tl.int64)[:, None] * C + o_c[None, :]
    tl.store(p_dx, (b_sum / BLOCK).to(dx.dtype.element_ty), mask=(o_t < T)[:, None] & (o_c < C)[None, :])


def _forward(
    x0: torch.Tensor, x1: torch.Tensor | None, x2: torch.Tensor | None, start: torch.Tensor | None,
    block: int, stride: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    outs = _forward_fake(x0, x1, x2, start, block, stride)
    constants = dict(STRIDE=stride, BLOCK=block, HAS_DOCUMENTS=start is not None)
    constants["STRIDE_PADDED"] = next_power_of_2(stride)
    _launch(_fwd_kernel, (x0, x1, x2), outs, start, x0.shape[1], constants, "SLOTS")
    return outs


def _forward_fake(x0, x1, x2, start, block, stride):
    n = n_slots(x0.shape[1], stride)
    return tuple(x0.new_empty(0) if x is None else x.new_empty(x.shape[0], n, *x.shape[2:]) for x in (x0, x1, x2))


def _backward(
    dout0: torch.Tensor | None, dout1: torch.Tensor | None, dout2: torch.Tensor | None, start: torch.Tensor | None,
    seq_len: int, block: int, stride: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    grads = _backward_fake(dout0, dout1, dout2, start, seq_len, block, stride)
    constants = dict(STRIDE=stride, BLOCK=block, HAS_DOCUMENTS=start is not None)
    _launch(_bwd_kernel, (dout0, dout1, dout2), grads, start, seq_len, constants, "TOKENS")
    return grads


def _backward_fake(dout0, dout1, dout2, start, seq_len, block, stride):
    some = next(x for x in (dout0, dout1, dout2) if x is not None)
    shapes = [(0,) if x is None else (x.shape[0], seq_len, *x.shape[2:]) for x in (dout0, dout1, dout2)]
    return tuple((some if x is None else x).new_empty(s) for x, s in zip((dout0, dout1, dout2), shapes, strict=True))


def _launch(kernel, xs: tuple, outs: tuple, start, seq_len: int, constants: dict, rows: str) -> None:
    """rows: the axis of `outs` that programs share, as its tile is named: SLOTS of forward, TOKENS of backward."""
    flat = [x if x is None or is_flat(x) else x.contiguous() for x in xs]
    i = next(i for i, x in enumerate(flat) if x is not None)
    some, (batch, length) = flat[i], outs[i].shape[:2]
    channels = [0 if x is None else x.shape[2:].numel() for x in flat]
    flat = [some if x is None else x for x in flat]  # pointers that are not followed; so is start
    tiles = _tiles(rows, max(channels))
    strides = [stride for x in flat for stride in x.stride()[:2]]
    n_slots = length if rows == "SLOTS" else some.shape[1]
    arguments = (*flat, *outs, some if start is None else start, *strides, *channels, seq_len, n_slots)
    n_tiles = sum(cdiv(n, tiles[0]["CHANNELS"]) for n in channels)
    launch(kernel, lambda tile: (cdiv(length, tile[rows]), n_tiles, batch), arguments, constants, tiles, some.device)


@cache
def _tiles(rows: str, channels: int) -> list[dict]:
    width = min(128, next_power_of_2(channels))
    n = 2048 // max(16, width)  # a slot reads where the documents of its tokens begin: 2,048 of 64 compile for 40 s
    return [{rows: n, "CHANNELS": width, "num_warps": 4}]


def _setup_context(ctx, inputs, output) -> None:
    x0, _, _, start, ctx.block, ctx.stride = inputs
    ctx.seq_len = x0.shape[1]
    ctx.save_for_backward(start)
    ctx.set_materialize_grads(False)


def _gradient(ctx, *douts, compiling: bool):
    if all(dout is None for dout in douts):
        return (None,) * 6
    backward: Callable = _backward_op if compiling else _backward
    grads = backward(*douts, *ctx.saved_tensors, ctx.seq_len, ctx.block, ctx.stride)
    return *(None if dout is None else grad for dout, grad in zip(douts, grads, strict=True)), None, None, None


_backward_op = opaque("mean_pool_backward", _backward, _backward_fake)
_mean_pool = differentiable("mean_pool", _forward, _forward_fake, _setup_context, _gradient)
