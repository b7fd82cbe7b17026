"""The short convolution by the Triton kernel of flash-linear-attention (package fla-core)."""

import warnings

import torch

from zoo.kernels.convolution import reference
from zoo.kernels.documents import Documents
from zoo.kernels.outside import ends_of, laid_end_to_end, use_tiles

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it could be quicker with
    from fla.modules.causal_conv1d import causal_conv1d
use_tiles()


def short_convolution(
    x_BTC: torch.Tensor,
    weight_CW: torch.Tensor,
    bias_C: torch.Tensor | None,
    *,
    documents: Documents | None,
    tail_BNC: torch.Tensor | None,
) -> torch.Tensor:
    """`zoo.kernels.short_convolution`. Tokens after a tail are few, or read once: plain torch serves them."""
    if tail_BNC is not None:
        return reference.short_convolution(x_BTC, weight_CW, bias_C, documents=documents, tail_BNC=tail_BNC)
    x, options = x_BTC, {}
    if documents is not None:
        x, options = laid_end_to_end(x_BTC), {"cu_seqlens": ends_of(documents)}
    bias = None if bias_C is None else bias_C.contiguous()
    y, _ = causal_conv1d(x.contiguous(), weight_CW.contiguous(), bias, activation="silu", **options)
    return y.reshape(x_BTC.shape)
