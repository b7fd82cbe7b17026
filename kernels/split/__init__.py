"""The cut of a projection's product into heads, with rotary embedding where it goes."""

from functools import cache
from typing import NamedTuple

import torch

from zoo.kernels import dispatch


class Piece(NamedTuple):
    """Channels of each head: `width` of them, of which the first `rotary` are rotated.

    view: return a view of the product, not a copy; it is not rotated then.
    readers: how many tensors to return, all in the same memory, one for each function that reads the piece. The
    gradients of up to three are added up where the gradient of the product is written; torch would add two at a time,
    and write each sum, as it does with those of further readers.
    """

    width: int
    rotary: int = 0
    view: bool = False
    readers: int = 1


class Heads(NamedTuple):
    """`n` heads side by side, each of the same pieces."""

    n: int
    pieces: tuple[Piece, ...]

    @property
    def width(self) -> int:
        return self.n * sum(piece.width for piece in self.pieces)


def _why_not_triton(y, cos, sin, *, groups, in_place) -> str | None:
    if torch.compiler.is_compiling():
        return "under torch.compile the reference becomes one kernel as well"
    if cos is not None and cos.dtype != torch.float32:
        return f"its tables are float32, not {cos.dtype}"
    return dispatch.why_not_triton(y)


dispatch.register(
    "split_heads",
    dispatch.Implementation("triton", "zoo.kernels.split.op:split_heads", _why_not_triton),
    dispatch.Implementation("reference", "zoo.kernels.split.reference:split_heads"),
)


def split_heads(
    y_BTC: torch.Tensor,
    groups: tuple[Heads, ...],
    cos_BTR: torch.Tensor | None = None,
    sin_BTR: torch.Tensor | None = None,
    *,
    in_place: bool = False,
    impl: str = "auto",
) -> list[torch.Tensor]:
    """Cut y [B, T, C] along its channels into the pieces of the groups, in order, each [B, T, n, width].

    A piece of several readers is returned once for each of them.

    cos_BTR, sin_BTR: [B or 1, T, rotary / 2], needed if a piece is rotated; all rotary widths are equal. The rotation
    is that of `rotate` (half split). Pieces are contiguous, except views and those cut in place; where no gradient
    is recorded, every piece that is not rotated is a view.
    in_place: y may be overwritten. The kernel then rotates pieces where they lie, and all pieces are views of y, or of
    one copy if y is not contiguous. So whoever keeps a piece keeps all of y. A backward pass that needs y as it was
    raises an error. The reference leaves y alone, and returns the same pieces as without.
    The gradient of y is written once, from the gradients of all pieces: cutting by torch and rotating afterwards reads
    and writes it twice.
    Raises ValueError if shapes, dtypes or devices do not agree.
    """
    found = list(y_BTC.shape)
    if y_BTC.dim() != 3 or 0 in found or not y_BTC.is_floating_point():
        raise ValueError(f"split_heads: y must be floating, [B, T, C], and not empty; found {y_BTC.dtype} {found}.")
    width = sum(group.width for group in groups)
    if width != found[-1]:
        raise ValueError(f"split_heads: the groups have {width} channels; y has {found[-1]}.")
    rotary = {piece.rotary for group in groups for piece in group.pieces} - {0}
    if rotary:
        _check_table(y_BTC, rotary, cos_BTR, sin_BTR)
    if not (torch.is_grad_enabled() and y_BTC.requires_grad):
        groups = _viewed(groups)
    return dispatch.call("split_heads", impl, y_BTC, cos_BTR, sin_BTR, groups=groups, in_place=in_place)


def _check_table(y_BTC: torch.Tensor, rotary: set[int], cos, sin) -> None:
    B, T, _ = y_BTC.shape
    expected = [[rows, T, next(iter(rotary)) // 2] for rows in (1, B)]
    if cos is None or sin is None or len(rotary) > 1 or list(cos.shape) not in expected or cos.shape != sin.shape:
        found = " and ".join("none" if x is None else str(list(x.shape)) for x in (cos, sin))
        raise ValueError(
            f"split_heads: cos and sin must be {expected[0]}, rotary widths equal; found {found}, {rotary}."
        )
    if cos.dtype not in (torch.float32, torch.float64) or cos.dtype != sin.dtype or cos.device != y_BTC.device:
        raise ValueError(
            f"split_heads: cos and sin must be float32 or float64 and on {y_BTC.device}; "
            f"found {cos.dtype} on {cos.device}, {sin.dtype}."
        )


@cache
def _viewed(groups: tuple[Heads, ...]) -> tuple[Heads, ...]:
    """The same, with views for all that is not rotated."""
    return tuple(Heads(n, tuple(p._replace(view=p.view or not p.rotary) for p in pieces)) for n, pieces in groups)
