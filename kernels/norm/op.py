"""The norm by the kernels: launches and gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from zoo.kernels.launching import Tile, cdiv, launch, n_processors, next_power_of_2
from zoo.kernels.layout import dense_rows
from zoo.kernels.norm import triton as kernels
from zoo.kernels.registration import differentiable, opaque

FWD_NUMBERS = 1024  # of a tile
BWD_NUMBERS = 4096  # of a tile in the backward pass, which loops: more loads are under way at a time
BWD_PROGRAMS = 16  # for each processor


def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
    """`zoo.kernels.rms_norm`: x [B, T, D] or [B, T, H, D] -> the same shape, contiguous."""
    normalise = _norm.op if torch.compiler.is_compiling() else _norm.eager
    return normalise(x if x.dim() == 4 else x.unsqueeze(2), weight, eps).view(x.shape)


def _forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x, weight = dense_rows(x), weight.contiguous()
    B, T, H, D = x.shape
    out = x.new_empty(x.shape)
    arguments = x, weight, out, B * T, T, H, eps, *x.stride()[:3], _head_stride(weight)
    tiles, constants = _tiles(D)
    launch(
        kernels._rms_norm_fwd_kernel, lambda tile: (cdiv(B * T, tile["ROWS"]), H), arguments, constants, tiles, x.device
    )
    return out


def _backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    x, dy, weight = dense_rows(x), dense_rows(dy), weight.contiguous()
    B, T, H, D = x.shape
    tiles, constants = _tiles(D, BWD_NUMBERS)
    programs = min(cdiv(B * T, tiles[0]["ROWS"]), cdiv(BWD_PROGRAMS * n_processors(x.device), H))
    dx = x.new_empty(x.shape)
    part = x.new_empty(programs, H, D, dtype=torch.float32)
    strides = *x.stride()[:3], *dy.stride()[:3], _head_stride(weight)
    arguments = x, weight, dy, dx, part, B * T, T, H, eps, *strides
    launch(kernels._rms_norm_bwd_kernel, lambda tile: (programs, H), arguments, constants, tiles, x.device)
    return dx, part.sum(0 if weight.dim() == 2 else (0, 1)).to(weight.dtype)


@cache
def _tiles(width: int, numbers: int = FWD_NUMBERS) -> tuple[list[Tile], dict]:
    padded = next_power_of_2(width)
    tile = dict(ROWS=max(1, numbers // padded), num_warps=4)
    return [tile], dict(D=width, DP=padded)


def _head_stride(weight: torch.Tensor) -> int:
    return weight.stride(0) if weight.dim() == 2 else 0


def _forward_fake(x, weight, eps):
    return x.new_empty(x.shape)


def _backward_fake(dy, x, weight, eps):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _gradient(ctx, dy, *, compiling: bool):
    backward: Callable = _backward_op if compiling else _backward
    return *backward(dy, *ctx.saved_tensors, ctx.eps), None


_backward_op = opaque("rms_norm_backward", _backward, _backward_fake)
_norm = differentiable("rms_norm", _forward, _forward_fake, _setup_context, _gradient)
