"""Gated sum of branch outputs, fused: forward reads each branch once and writes once; backward likewise.

Rows are (batch, token, head), V channels each; logits are [rows, P]. Up to four branches, as pointers o0..o3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from zoo.kernels.launching import cdiv, launch, next_power_of_2
from zoo.kernels.registration import differentiable, opaque

_MAX_BRANCHES = 4
_TILES = [dict(ROWS=32, num_warps=4)]


def gated_sum(outputs: Sequence[torch.Tensor], gate_logits_BTHP: torch.Tensor) -> torch.Tensor:
    """`zoo.kernels.gated_sum`, up to four outputs [B, T, H, V] with logits [B, T, H, P]: [B, T, H, V]."""
    absent = [None] * (_MAX_BRANCHES - len(outputs))
    return _gated_sum(gate_logits_BTHP.contiguous(), *(x.contiguous() for x in outputs), *absent)


@triton.jit
def _gate(logits, o_row, n_rows, BRANCH: tl.constexpr, P: tl.constexpr):
    return tl.sigmoid(tl.load(logits + o_row * P + BRANCH, mask=o_row < n_rows, other=0.0).to(tl.float32))


@triton.jit
def _gated_sum_fwd_kernel(
    logits, o0, o1, o2, o3, out, n_rows, V: tl.constexpr, VP: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr
):
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_c = tl.arange(0, VP)
    offset = o_row[:, None] * V + o_c[None, :]
    mask = (o_row < n_rows)[:, None] & (o_c < V)[None, :]
    b_sum = tl.zeros([ROWS, VP], tl.float32)
    for i in tl.static_range(P):
        b_o = tl.load((o0, o1, o2, o3)[i] + offset, mask=mask, other=0.0).to(tl.float32)
        b_sum += _gate(logits, o_row, n_rows, i, P)[:, None] * b_o
    tl.store(out + offset, b_sum.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gated_sum_bwd_kernel(
    logits, o0, o1, o2, o3, do, dlogits, do0, do1, do2, do3, n_rows,
    V: tl.constexpr, VP: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o_c = tl.arange(0, VP)
    offset = o_row[:, None] * V + o_c[None, :]
    mask = (o_row < n_rows)[:, None] & (o_c < V)[None, :]
    b_do = tl.load(do + offset, mask=mask, other=0.0).to(tl.float32)
    for i in tl.static_range(P):
        b_gate = _gate(logits, o_row, n_rows, i, P)
        b_o = tl.load((o0, o1, o2, o3)[i] + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store((do0, do1, do2, do3)[i] + offset, (b_gate[:, None] * b_do).to(do0.dtype.element_ty), mask=mask)
        b_dlogit = tl.sum(b_o * b_do, 1) * b_gate * (1 - b_gate)
        tl.store(dlogits + o_row * P + i, b_dlogit.to(dlogits.dtype.element_ty), mask=o_row < n_rows)


def _forward(
    logits: torch.Tensor,
    o0: torch.Tensor,
    o1: torch.Tensor | None,
    o2: torch.Tensor | None,
    o3: torch.Tensor | None,
) -> torch.Tensor:
    out = torch.empty_like(o0)
    _launch(_gated_sum_fwd_kernel, o0, logits, (logits, *_pointers(o0, o1, o2, o3), out))
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
    _launch(_gated_sum_bwd_kernel, o0, logits, pointers)
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
