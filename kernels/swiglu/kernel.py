"""The gate of SwiGLU in Triton around torch's products. Elements are independent; SIZE of them to a program.

Forward: h = silu(g) u, with g = W_gate x and u = W_up x, which are kept; h is not. Backward, one pass over g, u and dh
gives h again, dg = dh u sigma(g) (1 + g (1 - sigma(g))) and du = dh silu(g), written over dh, g and u.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from zoo.kernels.launching import cdiv, launch
from zoo.kernels.registration import differentiable, opaque

_TILES = [dict(SIZE=2048, num_warps=4)]


def swiglu_mlp(x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor) -> torch.Tensor:
    out, _, _ = _mlp(x.reshape(-1, x.shape[-1]), w_gate, w_up, w_down)
    return out.view(x.shape)


@triton.jit
def _swiglu_fwd_kernel(gate, up, hidden, n, SIZE: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = offset < n
    b_g = tl.load(gate + offset, mask=mask, other=0.0).to(tl.float32)
    b_u = tl.load(up + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(hidden + offset, (b_g * tl.sigmoid(b_g) * b_u).to(hidden.dtype.element_ty), mask=mask)


@triton.jit
def _swiglu_bwd_kernel(dh, gate, up, hidden, dgate, dup, n, SIZE: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = offset < n
    b_dh = tl.load(dh + offset, mask=mask, other=0.0).to(tl.float32)
    b_g = tl.load(gate + offset, mask=mask, other=0.0).to(tl.float32)
    b_u = tl.load(up + offset, mask=mask, other=0.0).to(tl.float32)
    b_sigma = tl.sigmoid(b_g)
    b_silu = b_g * b_sigma
    b_dg = b_dh * b_u * (b_sigma + b_silu * (1 - b_sigma))
    tl.store(hidden + offset, (b_silu * b_u).to(hidden.dtype.element_ty), mask=mask)
    tl.store(dgate + offset, b_dg.to(dgate.dtype.element_ty), mask=mask)
    tl.store(dup + offset, (b_dh * b_silu).to(dup.dtype.element_ty), mask=mask)


def _forward(
    x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W_down h, g, u for rows x [N, C]."""
    gate, up = F.linear(x, w_gate), F.linear(x, w_up)
    hidden = torch.empty_like(gate)
    _launch(_swiglu_fwd_kernel, gate, up, hidden)
    return F.linear(hidden, w_down), gate, up


def _forward_fake(x, w_gate, w_up, w_down):
    shape = x.shape[0], w_gate.shape[0]
    return x.new_empty(x.shape), x.new_empty(shape), x.new_empty(shape)


def _backward(
    do: torch.Tensor,
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    w_gate: torch.Tensor,
    w_up: torch.Tensor,
    w_down: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x and of the three weights; nothing that was kept is written over."""
    return _gradients(do, x, gate, up, w_gate, w_up, w_down, torch.empty_like(gate), torch.empty_like(up))


def _gradients(do, x, gate, up, w_gate, w_up, w_down, dgate, dup):
    do = do.contiguous()
    dh = do @ w_down
    _launch(_swiglu_bwd_kernel, dh, gate, up, dh, dgate, dup)  # dh is h from here on
    dw_down = do.T @ dh
    dx = (dgate @ w_gate).addmm_(dup, w_up)
    return dx, dgate.T @ x, dup.T @ x, dw_down


def _backward_fake(do, x, gate, up, w_gate, w_up, w_down):
    return tuple(t.new_empty(t.shape) for t in (x, w_gate, w_up, w_down))


def _launch(kernel, *tensors: torch.Tensor) -> None:
    n = tensors[0].numel()
    launch(kernel, lambda tile: (cdiv(n, tile["SIZE"]),), (*tensors, n), {}, _TILES, tensors[0].device)


def _setup_context(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros as large as both products otherwise
    ctx.save_for_backward(inputs[0], *output[1:], *inputs[1:])
    ctx.spent = False


def _gradient(ctx, do, *_, compiling: bool):
    if do is None:
        return (None,) * 4
    if compiling:
        return _backward_op(do, *ctx.saved_tensors)
    if ctx.spent:
        raise RuntimeError("swiglu_mlp: its backward pass ran already, and wrote over what the forward pass had kept.")
    ctx.spent = True
    x, gate, up, *weights = ctx.saved_tensors
    return _gradients(do, x, gate, up, *weights, gate, up)


_backward_op = opaque("swiglu_mlp_backward", _backward, _backward_fake)
_mlp = differentiable("swiglu_mlp", _forward, _forward_fake, _setup_context, _gradient)
