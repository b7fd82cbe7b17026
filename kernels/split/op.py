"""The cut by the kernel: launches and gradient."""

from __future__ import annotations

from functools import cache
from itertools import islice

import torch
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from zoo.kernels.launching import Tile, cdiv, launch, next_power_of_2
from zoo.kernels.layout import dense_rows
from zoo.kernels.split import triton as kernels

MOST_SOURCES = 3  # that the kernel adds up


def split_heads(
    y: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, *, groups, in_place
) -> list[torch.Tensor]:
    """`zoo.kernels.split_heads`: y [B, T, C] -> the pieces of all groups, each [B, T, n, width]."""
    if cos is not None and sin is not None:
        cos, sin = cos.contiguous(), sin.contiguous()
    y = y.contiguous() if in_place else dense_rows(y)  # rows that share memory would be rotated twice
    return list(_Split.apply(y, cos, sin, groups, in_place))


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, cos, sin, groups, in_place):
        ctx.save_for_backward(cos, sin)
        ctx.set_materialize_grads(False)
        ctx.like, ctx.groups = (y.shape, y.dtype, y.device), groups
        results, overwritten = [], False
        for piece, x_BTHD in _places(y.detach(), groups):
            if in_place:
                if piece.rotary and not piece.view:
                    overwritten = True
                    turned_BTHR = x_BTHD[..., : piece.rotary]  # a program reads its pairs of channels, then writes them
                    _move([turned_BTHR], turned_BTHR, piece.rotary, cos, sin, back=False)
            elif not piece.view:
                piece_BTHD = torch.empty(x_BTHD.shape, dtype=y.dtype, device=y.device)
                _move([x_BTHD], piece_BTHD, piece.rotary, cos, sin, back=False)
                x_BTHD = piece_BTHD
            results += [x_BTHD, *(x_BTHD.detach() for _ in range(piece.readers - 1))]
        if overwritten and not y.is_inference():  # which have no version
            increment_version(y)  # a backward pass that needs y as it was fails, instead of reading what is rotated
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        if all(grad is None for grad in grads):
            return (None,) * 5
        shape, dtype, device = ctx.like
        tables = ctx.saved_tensors  # read once: activation checkpointing returns saved tensors only once
        dy = torch.empty(shape, dtype=dtype, device=device)
        of_readers = iter(grads)
        for piece, place_BTHD in _places(dy, ctx.groups):
            found = [grad for grad in islice(of_readers, piece.readers) if grad is not None]
            if found:
                rotary = 0 if piece.view else piece.rotary
                _move(_at_most(MOST_SOURCES, found), place_BTHD, rotary, *tables, back=True)
            else:
                place_BTHD.zero_()
        return dy, *(None,) * 4


def _at_most(n: int, grads: list[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of the same sum and of equal strides."""
    while len(grads) > n:
        grads = [*grads[:-2], grads[-2] + grads[-1]]
    grads = [dense_rows(grad) for grad in grads]
    return grads if len({grad.stride() for grad in grads}) == 1 else [grad.contiguous() for grad in grads]


def _places(y: torch.Tensor, groups):
    """Each piece with its place in y, [B, T, n, width]."""
    start = 0
    for group in groups:
        heads = y[..., start : start + group.width].unflatten(-1, (group.n, -1))
        start, channel = start + group.width, 0
        for piece in group.pieces:
            yield piece, heads[..., channel : channel + piece.width]
            channel += piece.width


def _move(sources: list[torch.Tensor], out: torch.Tensor, rotary: int, cos, sin, *, back: bool) -> None:
    """Rows of the sum of the sources to out, all [B, T, H, D] with contiguous channels; sources of equal strides."""
    x = sources[0]
    B, T, H, D = x.shape
    R, rest = rotary // 2, D - rotary
    table_b = cos.stride(0) if R and cos.shape[0] > 1 else 0
    tables = (cos, sin) if R else (x, x)  # pointers that are not followed
    further = [*sources[1:], *[x] * (MOST_SOURCES - len(sources))]
    arguments = x, *further, out, *tables, B * T * H, T, H, *x.stride()[:3], *out.stride()[:3], table_b
    constants = dict(R=R, RP=next_power_of_2(R), REST=rest, RESTP=next_power_of_2(rest), BACK=back, N=len(sources))
    launch(
        kernels._split_kernel, lambda tile: (cdiv(B * T * H, tile["ROWS"]),), arguments, constants, _tiles(D), x.device
    )


@cache
def _tiles(width: int) -> list[Tile]:
    return [dict(ROWS=max(1, 4096 // next_power_of_2(width)), num_warps=4)]
