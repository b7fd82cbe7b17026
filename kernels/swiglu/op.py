"""SwiGLU by torch's products and the kernels of its gate: launches and gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from zoo.kernels.launching import Tile, cdiv, launch
from zoo.kernels.registration import differentiable, opaque
from zoo.kernels.swiglu import triton as kernels

# COLS of the feed-forward's width to a program, of ROWS rows: 2,048 numbers, whole sectors.
_TILES = [dict(ROWS=8, COLS=256, num_warps=4)]


def swiglu_mlp(x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor) -> torch.Tensor:
    """`zoo.kernels.swiglu_mlp`: [..., C] -> [..., C]."""
    compute = _mlp.op if torch.compiler.is_compiling() else _mlp.eager
    out, _, _ = compute(x.reshape(-1, x.shape[-1]), w_gate, w_up, w_down)
    return out.view(x.shape)


def _forward(
    x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W_down h, [g, u], [W_gate ; W_up] for rows x [N, C]."""
    w_both = torch.cat((w_gate, w_up))
    both = F.linear(x, w_both)
    hidden = x.new_empty(x.shape[0], w_gate.shape[0])
    _launch(kernels._swiglu_fwd_kernel, hidden.shape, both, hidden)
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
    _launch(kernels._swiglu_bwd_kernel, dh.shape, dh, both, dboth)  # dh is h from here on
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
