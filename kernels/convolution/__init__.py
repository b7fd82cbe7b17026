"""The short causal convolution in front of linear attention, one filter a channel, and the SiLU after it."""

import torch

from zoo.kernels import checks, dispatch
from zoo.kernels.documents import Documents
from zoo.kernels.outside import why_not_fla

dispatch.register(
    "short_convolution",
    dispatch.Implementation(
        "fla", "zoo.kernels.convolution.fla:short_convolution", lambda x_BTC, *_, **options: why_not_fla(x_BTC)
    ),
    dispatch.Implementation("reference", "zoo.kernels.convolution.reference:short_convolution", slow=True),
)


def short_convolution(
    x_BTC: torch.Tensor,
    weight_CW: torch.Tensor,
    bias_C: torch.Tensor | None = None,
    *,
    documents: Documents | None = None,
    tail_BNC: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """y_t = silu(b + sum over i < W of w_{W-1-i} x_{t-i}): the latest W tokens of each channel, its own included.

    documents: nothing is read of another document.  tail_BNC: the N = W - 1 tokens before the first; zeros if None.
    Returns y_BTC in the dtype of x, sums in float32 (float64 for float64 input).
    Raises ValueError if shapes or devices do not agree.
    """
    found = checks.sizes("short_convolution", x_BTC=x_BTC)
    channels, width = found["C"], weight_CW.shape[-1]
    tensors = {"weight_CW": (weight_CW, (channels, width)), "bias_C": (bias_C, (channels,))}
    tensors["tail_BNC"] = tail_BNC, (found["B"], width - 1, channels)
    for name, (tensor, shape) in tensors.items():
        if tensor is not None and (tuple(tensor.shape) != shape or tensor.device != x_BTC.device):
            place = f"{list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"short_convolution: {name} must be {list(shape)} on {x_BTC.device}; found {place}.")
    if documents is not None and tail_BNC is not None:
        raise ValueError("short_convolution: rows of several documents have no tail; found documents with a tail.")
    options = {"documents": documents, "tail_BNC": tail_BNC}
    return dispatch.call("short_convolution", impl, x_BTC, weight_CW, bias_C, **options)
