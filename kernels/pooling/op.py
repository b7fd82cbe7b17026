"""Means of compression blocks by the kernels: launches and gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from zoo.kernels.documents import Documents, n_slots
from zoo.kernels.launching import cdiv, launch, next_power_of_2
from zoo.kernels.layout import is_flat
from zoo.kernels.pooling import triton as kernels
from zoo.kernels.registration import differentiable, opaque

_MOST = 3


def mean_pool(xs: list[torch.Tensor], *, block: int, stride: int, documents: Documents | None) -> list[torch.Tensor]:
    """Each x [B, T, ...] to [B, N, ...]; empty slots are zeros."""
    start_BT = None if documents is None else documents.start_BT.contiguous()
    pooled = []
    for i in range(0, len(xs), _MOST):
        some = xs[i : i + _MOST]
        absent = [None] * (_MOST - len(some))
        pool = _mean_pool.op if torch.compiler.is_compiling() else _mean_pool.eager
        pooled += pool(*some, *absent, start_BT, block, stride)[: len(some)]
    return pooled


def _forward(
    x0: torch.Tensor, x1: torch.Tensor | None, x2: torch.Tensor | None, start: torch.Tensor | None,
    block: int, stride: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    outs = _forward_fake(x0, x1, x2, start, block, stride)
    constants = dict(STRIDE=stride, BLOCK=block, HAS_DOCUMENTS=start is not None)
    constants["STRIDE_PADDED"] = next_power_of_2(stride)
    _launch(kernels._fwd_kernel, (x0, x1, x2), outs, start, x0.shape[1], constants, "SLOTS")
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
    _launch(kernels._bwd_kernel, (dout0, dout1, dout2), grads, start, seq_len, constants, "TOKENS")
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
