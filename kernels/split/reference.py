"""The cut in plain torch."""

import torch

from zoo.kernels.rotary.reference import rotate


def split_heads(
    y: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, *, groups, in_place
) -> list[torch.Tensor]:
    """`zoo.kernels.split_heads`: y [B, T, C] -> the pieces of all groups, each [B, T, n, width].

    y is left alone: torch rotates out of place. Views of y would then be kept in addition to what is rotated.
    """
    found = []
    for group, part in zip(groups, _cut(y, [group.width for group in groups]), strict=True):
        pieces = _cut(part.unflatten(-1, (group.n, -1)), [piece.width for piece in group.pieces])
        for x, piece in zip(pieces, group.pieces, strict=True):
            found += [_taken(x, piece, cos, sin)] * piece.readers
    return found


def _cut(x: torch.Tensor, widths: list[int]) -> tuple[torch.Tensor, ...]:
    """Pieces of the last axis. One piece is x itself: the backward pass of torch's split would copy its gradient."""
    return x.split(widths, -1) if len(widths) > 1 else (x,)


def _taken(x: torch.Tensor, piece, cos: torch.Tensor | None, sin: torch.Tensor | None) -> torch.Tensor:
    if piece.view:
        return x
    if not piece.rotary or cos is None or sin is None:
        return x.contiguous()
    turned = rotate(x[..., : piece.rotary], cos, sin)
    return turned if piece.rotary == piece.width else torch.cat((turned, x[..., piece.rotary :]), -1)
