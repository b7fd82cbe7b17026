"""Blocks of the compression grid, gathered or averaged."""

from collections.abc import Sequence

import torch

from zoo.kernels import checks, dispatch
from zoo.kernels.documents import Documents


def _why_not_triton(xs, **options) -> str | None:
    for x in xs:
        reason = dispatch.why_not_triton(x)
        if reason:
            return reason
    return None


dispatch.register("gather_blocks", dispatch.Implementation("reference", "zoo.kernels.pooling.reference:gather_blocks"))
dispatch.register(
    "mean_pool",
    dispatch.Implementation("triton", "zoo.kernels.pooling.op:mean_pool", _why_not_triton),
    dispatch.Implementation("reference", "zoo.kernels.pooling.reference:mean_pool"),
)


def gather_blocks(
    x_BTKD: torch.Tensor, *, block: int, stride: int, documents: Documents | None = None, impl: str = "auto"
) -> torch.Tensor:
    """The tokens of every compression block, for a learned pooling: x_BNLKD, zeros where a slot is empty.

    x_BTKD: any float dtype; [B, T, D] works as well and gives x_BNLD. Block j of a document that starts at row index a
    (tokens a + j s .. a + j s + l - 1, all in the document) lies in slot a // s + j; N = n_slots(T, s).
    Raises ValueError if block < stride, or documents are of another shape or device.
    """
    checks.pooling("gather_blocks", [x_BTKD], block, stride, documents)
    return dispatch.call("gather_blocks", impl, x_BTKD, block=block, stride=stride, documents=documents)


def mean_pool(
    x_BTKD: torch.Tensor | Sequence[torch.Tensor],
    *,
    block: int,
    stride: int,
    documents: Documents | None = None,
    impl: str = "auto",
) -> torch.Tensor | list[torch.Tensor]:
    """The mean of every compression block: x_BNKD in the dtype of x, zeros where a slot is empty.

    Blocks, slots and errors as in `gather_blocks`; [B, T, D] gives x_BND. Sums are float32 (float64 for float64 input).
    A sequence of tensors of one batch, as the keys and values of a layer, gives a list, and takes one launch.
    """
    xs = [x_BTKD] if isinstance(x_BTKD, torch.Tensor) else list(x_BTKD)
    checks.pooling("mean_pool", xs, block, stride, documents)
    pooled = dispatch.call("mean_pool", impl, xs, block=block, stride=stride, documents=documents)
    return pooled[0] if isinstance(x_BTKD, torch.Tensor) else pooled
