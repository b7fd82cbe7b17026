"""Mean of each compression block, fused: tokens in, slots out, without the [slots, block] tensor in between.

x is read as [B, T, C], with C all channels of a token, side by side. Forward gathers the tokens of a slot; backward
gathers the slots of a token (block / stride of them), so nothing is added atomically.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from zoo.kernels.documents import Documents, n_slots
from zoo.kernels.launching import cdiv, launch, next_power_of_2
from zoo.kernels.registration import differentiable, opaque


def mean_pool(x: torch.Tensor, *, block: int, stride: int, documents: Documents | None) -> torch.Tensor:
    """x [B, T, ...] to [B, N, ...]; empty slots are zeros."""
    start_BT = None if documents is None else documents.start_BT.contiguous()
    return _mean_pool(x, start_BT, block, stride)


@triton.jit
def _fwd_kernel(
    x, out, start, stride_xb, stride_xt, T, N, C,
    STRIDE: tl.constexpr, STRIDE_PADDED: tl.constexpr, BLOCK: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
    SLOTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(2).to(tl.int64)
    o_n = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    o_c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
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
    mask = (b_first >= 0)[:, None] & (o_c < C)[None, :]
    p_x = x + i_b * stride_xb + b_first.to(tl.int64)[:, None] * stride_xt + o_c[None, :]
    b_sum = tl.zeros([SLOTS, CHANNELS], tl.float32)
    for i in range(BLOCK):
        b_sum += tl.load(p_x + i * stride_xt, mask=mask, other=0.0).to(tl.float32)
    p_out = out + (i_b * N + o_n.to(tl.int64))[:, None] * C + o_c[None, :]
    tl.store(p_out, (b_sum / BLOCK).to(out.dtype.element_ty), mask=(o_n < N)[:, None] & (o_c < C)[None, :])


@triton.jit
def _bwd_kernel(
    dout, dx, start, stride_db, stride_dn, T, N, C,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, HAS_DOCUMENTS: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(2).to(tl.int64)
    o_t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    o_c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    b_start = o_t * 0
    if HAS_DOCUMENTS:
        b_start = tl.load(start + i_b * T + o_t, mask=o_t < T, other=0)
    b_position = o_t - b_start
    b_sum = tl.zeros([TOKENS, CHANNELS], tl.float32)
    for i in range((BLOCK + STRIDE - 1) // STRIDE):
        b_block = b_position // STRIDE - i
        b_last = b_start + b_block * STRIDE + BLOCK - 1
        covers = (b_block >= 0) & (b_last >= o_t) & (b_last < T)
        if HAS_DOCUMENTS:
            covers = covers & (tl.load(start + i_b * T + b_last, mask=covers, other=-1) == b_start)
        b_slot = (b_start // STRIDE + b_block).to(tl.int64)
        p_dout = dout + i_b * stride_db + b_slot[:, None] * stride_dn + o_c[None, :]
        b_sum += tl.load(p_dout, mask=covers[:, None] & (o_c < C)[None, :], other=0.0).to(tl.float32)
    p_dx = dx + (i_b * T + o_t.to(tl.int64))[:, None] * C + o_c[None, :]
    tl.store(p_dx, (b_sum / BLOCK).to(dx.dtype.element_ty), mask=(o_t < T)[:, None] & (o_c < C)[None, :])


def _forward(x: torch.Tensor, start: torch.Tensor | None, block: int, stride: int) -> torch.Tensor:
    x = _dense_channels(x)
    out = _forward_fake(x, start, block, stride)
    channels = x.shape[2:].numel()
    p_start = x if start is None else start  # a pointer that is not followed
    constants = dict(STRIDE=stride, BLOCK=block, HAS_DOCUMENTS=start is not None)
    constants["STRIDE_PADDED"] = next_power_of_2(stride)
    arguments = (x, out, p_start, *x.stride()[:2], x.shape[1], out.shape[1], channels)
    launch(_fwd_kernel, _grid(out, "SLOTS"), arguments, constants, _tiles("SLOTS", channels), x.device)
    return out


def _forward_fake(x, start, block, stride):
    return x.new_empty(x.shape[0], n_slots(x.shape[1], stride), *x.shape[2:])


def _backward(dout: torch.Tensor, start: torch.Tensor | None, seq_len: int, block: int, stride: int) -> torch.Tensor:
    dout = _dense_channels(dout)
    dx = _backward_fake(dout, start, seq_len, block, stride)
    channels = dx.shape[2:].numel()
    p_start = dout if start is None else start
    constants = dict(STRIDE=stride, BLOCK=block, HAS_DOCUMENTS=start is not None)
    arguments = (dout, dx, p_start, *dout.stride()[:2], seq_len, dout.shape[1], channels)
    tiles = _tiles("TOKENS", channels)
    launch(_bwd_kernel, _grid(dx, "TOKENS"), arguments, constants, tiles, dout.device)
    return dx


def _backward_fake(dout, start, seq_len, block, stride):
    return dout.new_empty(dout.shape[0], seq_len, *dout.shape[2:])


def _dense_channels(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy where the channels of a token do not lie side by side."""
    dense = x.stride(-1) == 1 and (x.dim() == 3 or x.stride(2) == x.shape[3])
    return x if dense else x.contiguous()


@cache
def _tiles(rows: str, channels: int) -> list[dict]:
    width = min(128, next_power_of_2(channels))
    return [{rows: max(16, 2048 // width), "CHANNELS": width, "num_warps": 4}]


def _grid(out: torch.Tensor, rows: str):
    batch, length, channels = *out.shape[:2], out.shape[2:].numel()
    return lambda tile: (cdiv(length, tile[rows]), cdiv(channels, tile["CHANNELS"]), batch)


def _setup_context(ctx, inputs, output) -> None:
    x, start, ctx.block, ctx.stride = inputs
    ctx.seq_len = x.shape[1]
    ctx.save_for_backward(start)


def _gradient(ctx, dout, *, compiling: bool):
    backward = _backward_op if compiling else _backward
    return backward(dout, *ctx.saved_tensors, ctx.seq_len, ctx.block, ctx.stride), None, None, None


_backward_op = opaque("mean_pool_backward", _backward, _backward_fake)
_mean_pool = differentiable("mean_pool", _forward, _forward_fake, _setup_context, _gradient)
