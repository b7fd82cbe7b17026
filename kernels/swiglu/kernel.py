"""The gate of SwiGLU in Triton between torch's products. Elements are independent.

Forward: h = silu(g) u, with [g ; u] = [W_gate ; W_up] x, one product, which is kept; h is not. Backward, one pass over
g, u and dh gives h again, dg = dh u sigma(g) (1 + g (1 - sigma(g))) and du = dh silu(g), written over dh, g and u. The
gradient of x is then one product as well, summed in float32, where two products would round one of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from zoo.kernels.launching import Tile, cdiv, launch
from zoo.kernels.registration import differentiable, opaque

# COLS of the feed-forward's width to a program, of ROWS rows: 2,048 numbers, whole sectors.
_TILES = [dict(ROWS=8, COLS=256, num_warps=4)]


def swiglu_mlp(x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor) -> torch.Tensor:
    """`zoo.kernels.swiglu_mlp`: [..., C] -> [..., C]."""
    out, _, _ = _mlp(x.reshape(-1, x.shape[-1]), w_gate, w_up, w_down)
    return out.view(x.shape)


@triton.jit
def _place(n_rows, F, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Rows [ROWS, 1] and columns [1, COLS] of a program, and which of the elements exist."""
    n_across = tl.cdiv(F, COLS)
    o_row = ((tl.program_id(0) // n_across).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    o_c = (tl.program_id(0) % n_across * COLS + tl.arange(0, COLS))[None, :]
    return o_row, o_c, (o_row < n_rows) & (o_c < F)


@triton.jit
def _swiglu_fwd_kernel(both, hidden, n_rows, F, ROWS: tl.constexpr, COLS: tl.constexpr):
    o_row, o_c, mask = _place(n_rows, F, ROWS, COLS)
    p_gate = both + o_row * (2 * F) + o_c
    b_g = tl.load(p_gate, mask=mask, other=0.0).to(tl.float32)
    b_u = tl.load(p_gate + F, mask=mask, other=0.0).to(tl.float32)
    tl.store(hidden + o_row * F + o_c, (b_g * tl.sigmoid(b_g) * b_u).to(hidden.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_bwd_kernel(dh, both, dboth, n_rows, F, ROWS: tl.constexpr, COLS: tl.constexpr):
    """h over dh; the gradients of g and u, which may lie over g and u."""
    o_row, o_c, mask = _place(n_rows, F, ROWS, COLS)
    p_h, o_gate = dh + o_row * F + o_c, o_row * (2 * F) + o_c
    b_dh = tl.load(p_h, mask=mask, other=0.0).to(tl.float32)
    b_g = tl.load(both + o_gate, mask=mask, other=0.0).to(tl.float32)
    b_u = tl.load(both + o_gate + F, mask=mask, other=0.0).to(tl.float32)
    b_sigma = tl.sigmoid(b_g)
    b_silu = b_g * b_sigma
    b_dg = b_dh * b_u * (b_sigma + b_silu * (1 - b_sigma))
    tl.store(p_h, (b_silu * b_u).to(dh.dtype.element_ty), mask=mask)
    tl.store(dboth + o_gate, b_dg.to(dboth.dtype.element_ty), mask=mask)
    tl.store(dboth + o_gate + F, (b_dh * b_silu).to(dboth.dtype.element_ty), mask=mask)


def _forward(
    x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W_down h, [g, u], [W_gate ; W_up] for rows x [N, C]."""
    w_both = torch.cat((w_gate, w_up))
    both = F.linear(x, w_both)
    hidden = x.new_empty(x.shape[0], w_gate.shape[0])
    _launch(_swiglu_fwd_kernel, hidden.shape, both, hidden)
    return F.linear(hidden, w_down), both, w_both


def _forward_fake(x, w_gate, w_up, w_down):
    width, inputs = w_gate.shape
    return x.new_empty(x.shape), x.new_empty(x.shape[0], 2 * width), x.new_empty(2 * width, inputs)


def _backward(
    do: torch.Tensor, x: torch.Tensor, both: torch.Tensor, w_both: torch.Tensor, w_down: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, of both upper weights and of w_down; nothing that was kept is written over."""
    return _gradients(do, x, both, w_both, w_down, torch.empty_like(both))


def _gradients(do, x, both, w_both, w_down, dboth):
    do = do.contiguous()
    dh = do @ w_down
    _launch(_swiglu_bwd_kernel, dh.shape, dh, both, dboth)  # dh is h from here on
    dw_down = do.T @ dh
    return dboth @ w_both, dboth.T @ x, dw_down


def _backward_fake(do, x, both, w_both, w_down):
    return tuple(t.new_empty(t.shape) for t in (x, w_both, w_down))


def _launch(kernel, shape: torch.Size, *tensors: torch.Tensor) -> None:
    n_rows, width = shape

    def grid(tile: Tile) -> tuple[int]:
        return (cdiv(width, tile["COLS"]) * cdiv(n_rows, tile["ROWS"]),)

    launch(kernel, grid, (*tensors, n_rows, width), {}, _TILES, tensors[0].device)


def _setup_context(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros as large as both products otherwise
    ctx.save_for_backward(inputs[0], *output[1:], inputs[3])
    ctx.spent = False


def _gradient(ctx, do, *_, compiling: bool):
    if do is None:
        return (None,) * 4
    x, both, w_both, w_down = ctx.saved_tensors
    if compiling:
        dx, dw_both, dw_down = _backward_op(do, x, both, w_both, w_down)
    else:
        if ctx.spent:
            raise RuntimeError(
                "swiglu_mlp: its backward pass ran already, and wrote over what the forward pass had kept."
            )
        ctx.spent = True
        dx, dw_both, dw_down = _gradients(do, x, both, w_both, w_down, both)
    return dx, *dw_both.chunk(2), dw_down


_backward_op = opaque("swiglu_mlp_backward", _backward, _backward_fake)
_mlp = differentiable("swiglu_mlp", _forward, _forward_fake, _setup_context, _gradient)
