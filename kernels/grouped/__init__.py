"""A product of each group of rows with a matrix of its own: the experts of a mixture."""

import torch

from zoo.kernels import dispatch

CAPABILITY = (9, 0)  # Hopper: on older GPUs torch multiplies group by group, and waits for the device


def _why_not_grouped_mm(x_SC: torch.Tensor, weight_EFC: torch.Tensor, ends_E: torch.Tensor) -> str | None:
    from zoo.kernels.grouped.op import grouped_mm

    if grouped_mm is None:
        return f"torch {torch.__version__} has no grouped product"
    if not x_SC.is_cuda:
        return f"the tensors are on {x_SC.device.type}, not on a CUDA device"
    if not x_SC.dtype == weight_EFC.dtype == torch.bfloat16:
        return f"it takes bfloat16, not {x_SC.dtype} and {weight_EFC.dtype}"
    if weight_EFC.shape[1] % 8 or weight_EFC.shape[2] % 8:
        return f"widths must be multiples of 8, not {weight_EFC.shape[1]} and {weight_EFC.shape[2]}"
    if not dispatch.has_capability(x_SC.device, CAPABILITY):
        return "it needs a GPU of compute capability 9.0 or more"
    return None


dispatch.register(
    "grouped_linear",
    dispatch.Implementation("grouped_mm", "zoo.kernels.grouped.op:grouped_linear", _why_not_grouped_mm),
    dispatch.Implementation("reference", "zoo.kernels.grouped.reference:grouped_linear"),
)


def grouped_linear(
    x_SC: torch.Tensor, weight_EFC: torch.Tensor, ends_E: torch.Tensor, *, impl: str = "auto"
) -> torch.Tensor:
    """Row s of group e times W_e^T: [S, C] -> [S, F], in the dtype of x.

    x_SC: rows sorted by group.  weight_EFC: a matrix for each group.  ends_E: int32, where each group ends: ascending,
    the last S; a group may be empty.  The sums are float32 where x is bfloat16.
    Raises ValueError if shapes, dtypes or devices do not agree.
    """
    shapes = [list(t.shape) for t in (x_SC, weight_EFC, ends_E)]
    if x_SC.dim() != 2 or weight_EFC.dim() != 3 or weight_EFC.shape[2] != x_SC.shape[1]:
        raise ValueError(f"grouped_linear: must be x [S, C], weight [E, F, C], ends [E]; found {shapes}.")
    if ends_E.shape != weight_EFC.shape[:1] or ends_E.dtype != torch.int32:
        raise ValueError(f"grouped_linear: ends must be int32 [{len(weight_EFC)}]; found {ends_E.dtype} {shapes[2]}.")
    if x_SC.dtype != weight_EFC.dtype or not x_SC.is_floating_point():
        found = f"{x_SC.dtype} and {weight_EFC.dtype}"
        raise ValueError(f"grouped_linear: x and weight must have one floating dtype; found {found}.")
    if not x_SC.device == weight_EFC.device == ends_E.device:
        found = f"{x_SC.device}, {weight_EFC.device}, {ends_E.device}"
        raise ValueError(f"grouped_linear: x, weight and ends must be on one device; found {found}.")
    return dispatch.call("grouped_linear", impl, x_SC, weight_EFC, ends_E)
