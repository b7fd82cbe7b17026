"""Mean of each compression block, fused: tokens in, slots out, without the [slots, block] tensor in between.

x is read as [B, T, C], with C all channels of a token, side by side. Forward gathers the tokens of a slot; backward
gathers the slots of a token (block / stride of them), so nothing is added atomically. A launch serves up to three
tensors, as pointers x0..x2 with C0..C2 channels, 0 if there is none: keys, values and rotary keys of a layer.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
