"""The grouped product in plain torch: a product for each group. On a GPU the host waits for the groups' sizes."""

import torch
from torch._subclasses.fake_tensor import FakeTensor


def grouped_linear(x_SC: torch.Tensor, weight_EFC: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """`zoo.kernels.grouped_linear`: [S, C] -> [S, F]."""
    if x_SC.is_meta or isinstance(x_SC, FakeTensor):  # which know no sizes of groups
        return x_SC.new_empty(len(x_SC), weight_EFC.shape[1])
    ends = ends_E.tolist()
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    pieces = zip(x_SC.split(sizes), weight_EFC.unbind(), strict=True)
    return torch.cat([rows @ weight.T for rows, weight in pieces])
