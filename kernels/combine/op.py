"""The gated sum by the kernels: launches and gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zoo.kernels.combine import triton as kernels
from zoo.kernels.launching import cdiv, launch, next_power_of_2
from zoo.kernels.registration import differentiable, opaque

_MAX_BRANCHES = 4
_TILES = [dict(ROWS=32, num_warps=4)]


def gated_sum(outputs: Sequence[torch.Tensor], gate_logits_BTHP: torch.Tensor) -> torch.Tensor:
    """`zoo.kernels.gated_sum`, up to four outputs [B, T, H, V] with logits [B, T, H, P]: [B, T, H, V]."""
    absent = [None] * (_MAX_BRANCHES - len(outputs))
    weigh = _gated_sum.op if torch.compiler.is_compiling() else _gated_sum.eager
    return weigh(gate_logits_BTHP.contiguous(), *(x.contiguous() for x in outputs), *absent)


def _forward(
    logits: torch.Tensor,
    o0: torch.Tensor,
    o1: torch.Tensor | None,
    o2: torch.Tensor | None,
    o3: torch.Tensor | None,
) -> torch.Tensor:
    out = torch.empty_like(o0)
    _launch(kernels._gated_sum_fwd_kernel, o0, logits, (logits, *_pointers(o0, o1, o2, o3), out))
    return out


def _forward_fake(logits, o0, o1, o2, o3):
    return torch.empty_like(o0)


def _backward(
    do: torch.Tensor,
    logits: torch.Tensor,
    o0: torch.Tensor,
    o1: torch.Tensor | None,
    o2: torch.Tensor | None,
    o3: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    grads = _backward_fake(do, logits, o0, o1, o2, o3)
    pointers = (logits, *_pointers(o0, o1, o2, o3), do.contiguous(), grads[0], *grads[1:])
    _launch(kernels._gated_sum_bwd_kernel, o0, logits, pointers)
    return grads


def _backward_fake(do, logits, *outputs):
    """Memory for the gradients of the logits and of each output, empty where there is none."""
    return torch.empty_like(logits), *(do.new_empty(0 if x is None else x.shape) for x in outputs)


def _launch(kernel, o0: torch.Tensor, logits: torch.Tensor, pointers: tuple) -> None:
    width = o0.shape[-1]
    rows = o0.numel() // width
    constants = dict(V=width, VP=next_power_of_2(width), P=logits.shape[-1])
    launch(
        kernel,
        lambda tile: (cdiv(rows, tile["ROWS"]),),
        (*pointers, rows),
        constants,
        _TILES,
        o0.device,
    )


def _pointers(o0: torch.Tensor, *rest: torch.Tensor | None) -> list[torch.Tensor]:
    """Some pointer also for the branches that are not there."""
    return [o0, *(o0 if x is None else x for x in rest)]


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx, do, *, compiling: bool):
    inputs = ctx.saved_tensors
    grads = (_backward_op if compiling else _backward)(do, *inputs)
    return tuple(None if x is None else grad for x, grad in zip(inputs, grads, strict=True))


_backward_op = opaque("gated_sum_backward", _backward, _backward_fake)
_gated_sum = differentiable("gated_sum", _forward, _forward_fake, _setup_context, _gradient)
