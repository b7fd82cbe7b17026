"""Operations around attention that liger-kernel fuses on CUDA: RMSNorm, SwiGLU, the loss of the language-model head.

On other devices the same formula runs in PyTorch. liger-kernel is imported at the first call on a CUDA tensor; it is a
dependency on Linux, so its absence there is an installation error and is reported as one.
"""

import torch
import torch.nn.functional as F

IGNORED = -100  # label of a position that has no target


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last axis, statistics in float32 (Zhang & Sennrich, arXiv 1910.07467).

    x: [..., C], any float dtype.  weight: [C].  Returns [..., C] in x's dtype.
    """
    if x.is_cuda and x.dtype != torch.float64:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)
    wide = x if x.dtype == torch.float64 else x.float()
    return (F.rms_norm(wide, wide.shape[-1:], eps=eps) * weight.to(wide.dtype)).to(x.dtype)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer, arXiv 2002.05202).  gate, up: [..., F], same dtype; returns [..., F]."""
    if gate.is_cuda and gate.dtype != torch.float64:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        return LigerSiLUMulFunction.apply(gate, up)
    return F.silu(gate) * up


def linear_cross_entropy(x_NC: torch.Tensor, weight_VC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy, in nats, of softmax(x W^T) against labels; positions labelled -100 count nothing.

    x_NC: final hidden states.  weight_VC: head.  labels_N: int64.  Returns a scalar, float32 (float64 for float64).
    On CUDA the logits are never held whole: N x V at 8K context and 32K words is a gigabyte a row.
    """
    if x_NC.is_cuda and x_NC.dtype != torch.float64:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x_NC.dtype
        # accum_dtype: the gradient of the head is summed over chunks of tokens, which bf16 would round each time.
        settings = (None, None, IGNORED, 0.0, 0.0, "sum", None, False, torch.float32)
        result = LigerFusedLinearCrossEntropyFunction.apply(x_NC.to(dtype), weight_VC.to(dtype), labels_N, *settings)
        return (result[0] if isinstance(result, tuple) else result).float()
    logits_NV = x_NC @ weight_VC.to(x_NC.dtype).T
    wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return F.cross_entropy(wide, labels_N, ignore_index=IGNORED, reduction="sum")
