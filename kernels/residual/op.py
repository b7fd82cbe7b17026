"""Addition and norm by the kernels: launches and gradient."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from zoo.kernels.launching import Tile, cdiv, launch, n_processors, next_power_of_2
from zoo.kernels.registration import differentiable, opaque
from zoo.kernels.residual import triton as kernels


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, *, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """`zoo.kernels.add_rms_norm`: x + delta, and its norm in `dtype`, both [..., C]."""
    keeps = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, delta, weight))
    if delta is None and torch.compiler.is_compiling():  # an op may not return its input
        delta = torch.zeros_like(x)
    delta = delta if delta is None else delta.contiguous()
    add = _add_norm.op if torch.compiler.is_compiling() else _add_norm.eager
    total, normed, _, _ = add(x.contiguous(), delta, weight.contiguous(), eps, dtype, keeps)
    return total, normed


def _forward(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, dtype: torch.dtype, keeps: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """s (x itself without a delta), y, what is kept of s, and r; the last two empty unless `keeps`.

    Where s has the dtype of y already, s itself is kept, and the third is empty as well.
    """
    results = _forward_fake(x, delta, weight, eps, dtype, keeps)
    tiles, constants = _tiles(x.shape[-1])
    n_rows = x.numel() // x.shape[-1]
    arguments = x, delta, weight, *results, n_rows, eps
    constants = {**constants, "ADD": delta is not None, "KEEP": keeps, "COPY": results[2].numel() > 0}
    launch(
        kernels._add_norm_fwd_kernel, lambda tile: (cdiv(n_rows, tile["ROWS"]),), arguments, constants, tiles, x.device
    )
    return results


def _forward_fake(x, delta, weight, eps, dtype, keeps):
    total = x if delta is None else x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, delta.dtype))
    copies = keeps and (delta is None or total.dtype != dtype)
    kept = x.new_empty(x.shape if copies else 0, dtype=dtype)
    rms = x.new_empty(x.shape[:-1] if keeps else 0, dtype=torch.float32)
    return total, x.new_empty(x.shape, dtype=dtype), kept, rms


def _backward(
    dy: torch.Tensor,
    ds: torch.Tensor | None,
    kept: torch.Tensor,
    rms: torch.Tensor,
    weight: torch.Tensor,
    dtype: torch.dtype,
    delta_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx, d delta (empty where dx serves), dw."""
    C = kept.shape[-1]
    n_rows = kept.numel() // C
    tiles, constants = _tiles(C)
    programs = max(1, min(cdiv(n_rows, tiles[0]["ROWS"]), 4 * n_processors(kept.device)))
    dx, ddelta, dw = _backward_fake(dy, ds, kept, rms, weight, dtype, delta_dtype)
    part = kept.new_empty(programs, C, dtype=torch.float32)
    ds = ds if ds is None else ds.contiguous()
    arguments = dy.contiguous(), ds, kept, rms, weight, dx, ddelta, part, n_rows
    constants = {**constants, "HAS_DS": ds is not None, "TWO": delta_dtype != dtype}
    launch(kernels._add_norm_bwd_kernel, lambda tile: (programs,), arguments, constants, tiles, kept.device)
    return dx, ddelta, part.sum(0).to(dw.dtype)


def _backward_fake(dy, ds, kept, rms, weight, dtype, delta_dtype):
    ddelta = kept.new_empty(0 if delta_dtype == dtype else kept.shape, dtype=delta_dtype)
    return kept.new_empty(kept.shape, dtype=dtype), ddelta, weight.new_empty(weight.shape)


@cache
def _tiles(width: int) -> tuple[list[Tile], dict]:
    padded = next_power_of_2(width)
    tile = dict(ROWS=max(1, 2048 // padded), num_warps=4 if padded <= 2048 else 8)
    return [tile], dict(C=width, CP=padded)


def _setup_context(ctx, inputs, output) -> None:
    x, delta, weight, *_ = inputs
    ctx.dtypes = x.dtype, x.dtype if delta is None else delta.dtype
    ctx.adds = delta is not None
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    total, _, kept, rms = output
    ctx.save_for_backward(kept if kept.numel() or not rms.numel() else total, rms, weight)


def _gradient(ctx, ds, dy, *_, compiling: bool):
    kept, rms, weight = ctx.saved_tensors
    x_dtype, delta_dtype = ctx.dtypes
    if dy is None:  # nobody asked for the norm
        dx, ddelta, dw = (None, None, None) if ds is None else (ds.to(x_dtype), ds.to(delta_dtype), None)
    else:
        backward: Any = _backward_op if compiling else _backward
        dx, ddelta, dw = backward(dy, ds, kept, rms, weight, x_dtype, delta_dtype)
        ddelta = dx if delta_dtype == x_dtype else ddelta
    return dx, ddelta if ctx.adds else None, dw, None, None, None


_backward_op = opaque("add_rms_norm_backward", _backward, _backward_fake)
_add_norm = differentiable("add_rms_norm", _forward, _forward_fake, _setup_context, _gradient)
