"""Operations around attention that are fused on CUDA: residual additions with norms, SwiGLU, the loss of the head.

On other devices the same formula runs in PyTorch. liger-kernel is imported at the first call on a CUDA tensor; it is a
dependency on Linux, so its absence there is an installation error and is reported as one.

Under bfloat16 autocast on CUDA what the products read is bfloat16. The residual stream and its gradient have the dtype
of the stream before the first layer: bfloat16 in training, unless the recipe says `train.residual_stream: fp32`; sums
and statistics are float32, and each sum is rounded once.
"""

import importlib.util
import sys

import torch
import torch.nn.functional as F

from zoo.kernels import add_rms_norm, dispatch, swiglu_mlp

IGNORED = -100  # label of a position that has no target
LOGITS_AT_ONCE = 2**28  # elements of the logits that exist at a time


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype that a product with x has: under autocast on CUDA autocast's, otherwise that of x."""
    if x.is_cuda and torch.is_autocast_enabled("cuda") and x.dtype != torch.float64:
        return torch.get_autocast_dtype("cuda")
    return x.dtype


def add_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + delta (x itself if that is None), and its root-mean-square norm in the dtype that the products after it have.

    x: [..., C], the residual stream.  delta: [..., C], what a layer adds to it.  weight: [C].  Statistics are float32
    (Zhang & Sennrich, arXiv 1910.07467).
    """
    return add_rms_norm(x, delta, weight, eps=eps, dtype=compute_dtype(x) if x.is_cuda else None)


def add_layer_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `add_norm`, with LayerNorm (Ba 2016, arXiv 1607.06450): the mean is subtracted, and a bias [C] may be added.

    PyTorch's own operations on every device.
    """
    total = x if delta is None else x + delta
    wide = total if total.dtype == torch.float64 else total.float()
    weight, bias = weight.to(wide.dtype), None if bias is None else bias.to(wide.dtype)
    return total, F.layer_norm(wide, weight.shape, weight, bias, eps).to(compute_dtype(total))


def swiglu(x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor) -> torch.Tensor:
    """W_down (silu(W_gate x) * W_up x) (Shazeer, arXiv 2002.05202).  x: [..., C]; returns [..., C].

    w_gate, w_up: [F, C], w_down: [C, F].
    """
    dtype = compute_dtype(x)
    return swiglu_mlp(*(tensor.to(dtype) for tensor in (x, w_gate, w_up, w_down)))


def final_logits(logits: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """s z, or c tanh(s z / c) with a cap c (Gemma 2, arXiv 2408.00118); computed in float32, in the dtype of z."""
    if scale == 1 and softcap is None:
        return logits
    wide = scale * (logits if logits.dtype == torch.float64 else logits.float())
    return (wide if softcap is None else softcap * torch.tanh(wide / softcap)).to(logits.dtype)


def linear_cross_entropy(
    x_NC: torch.Tensor,
    weight_VC: torch.Tensor,
    labels_N: torch.Tensor,
    scale: float = 1.0,
    softcap: float | None = None,
) -> torch.Tensor:
    """Summed cross-entropy, in nats, of softmax(x W^T) against labels; positions labelled -100 count nothing.

    x_NC: final hidden states.  weight_VC: head.  labels_N: int64.  scale, softcap: of the logits, as in `final_logits`.
    Returns a scalar, float32 (float64 for float64).
    On CUDA the logits are never held whole: N x V at 8K context and 32K words is half a gigabyte a row.
    """
    if x_NC.is_cuda and x_NC.dtype != torch.float64 and dispatch.wanted()[0] != "reference":
        dtype = compute_dtype(x_NC)
        keeps = torch.is_grad_enabled() and (x_NC.requires_grad or weight_VC.requires_grad)
        head_VC = weight_VC if scale == 1 else weight_VC * scale  # rounded once, where a scaled logit would be twice
        return _LinearCrossEntropy.apply(x_NC.to(dtype), head_VC, labels_N, keeps, softcap)
    logits_NV = x_NC @ weight_VC.to(x_NC.dtype).T
    wide = final_logits(logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float(), scale, softcap)
    return F.cross_entropy(wide, labels_N, ignore_index=IGNORED, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    """The head and its loss, chunk by chunk, around liger-kernel's cross-entropy kernel.

    liger-kernel's own function asks the device how many targets there are, and whether the incoming gradient is 1:
    each waits for everything before it, and neither can be part of a CUDA graph. A sum needs neither number. The
    gradient of the head is summed over chunks in float32, which bfloat16 would round each time.
    """

    @staticmethod
    def forward(ctx, x_NC, weight_VC, labels_N, keeps: bool, softcap: float | None) -> torch.Tensor:
        x_NC, head_VC = x_NC.contiguous(), weight_VC.to(x_NC.dtype).contiguous()
        n_rows, n_words = x_NC.shape[0], head_VC.shape[0]
        losses_N = torch.zeros(n_rows, dtype=torch.float32, device=x_NC.device)  # 0 where there is no target
        dx_NC = torch.empty_like(x_NC) if keeps else None
        dhead_VC = torch.zeros_like(head_VC, dtype=torch.float32) if keeps else None
        size = min(n_rows, max(1, LOGITS_AT_ONCE // n_words))
        for start in range(0, n_rows, size):
            chunk = slice(start, start + size)
            logits_nV = x_NC[chunk] @ head_VC.T
            _cross_entropy(logits_nV, labels_N[chunk], losses_N[chunk], keeps, softcap)  # logits become their gradient
            if dx_NC is not None and dhead_VC is not None:
                torch.mm(logits_nV, head_VC, out=dx_NC[chunk])
                _add_product(dhead_VC, logits_nV.T, x_NC[chunk])
        if keeps:
            ctx.save_for_backward(dx_NC, dhead_VC)
            ctx.dtype = weight_VC.dtype
        return losses_N.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        """In place: what was kept is as large as the hidden states. The scale is float32, not rounded to bfloat16."""
        dx_NC, dhead_VC = ctx.saved_tensors
        torch.mul(dx_NC, grad.reshape(1, 1), out=dx_NC)
        return dx_NC, dhead_VC.mul_(grad).to(ctx.dtype), None, None, None


def _cross_entropy(
    logits_nV: torch.Tensor, labels_n: torch.Tensor, losses_n: torch.Tensor, gradient: bool, softcap: float | None
) -> None:
    """Write each row's cross-entropy, 0 where it has no target; with `gradient`, d loss / d logits over the logits."""
    _import_liger()
    from liger_kernel.ops.cross_entropy import MAX_FUSED_SIZE, liger_cross_entropy_kernel

    from zoo.kernels.launching import next_power_of_2

    n_rows, n_words = logits_nV.shape
    liger_cross_entropy_kernel[(n_rows,)](
        X_ptr=logits_nV,
        X_stride=logits_nV.stride(0),
        Y_ptr=labels_n,
        Y_stride=labels_n.stride(0),
        weight_ptr=None,
        loss_ptr=losses_n,
        z_loss_ptr=None,
        loss_stride=losses_n.stride(0),
        token_accuracy_ptr=None,
        token_accuracy_stride=0,
        predicted_tokens_ptr=None,
        predicted_tokens_stride=0,
        n_cols=n_words,
        n_non_ignore=1,  # these three divide a mean
        sum_non_ignore_weight=1,
        weight_sum=0.0,
        ignore_index=IGNORED,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="sum",
        softcap=softcap,
        RETURN_Z_LOSS=False,
        RETURN_TOKEN_ACCURACY=False,
        RETURN_PREDICTED_TOKENS=False,
        HAS_WEIGHT=False,
        HAS_SOFTCAPPING=softcap is not None,
        HAS_GRADIENTS=gradient,
        BLOCK_SIZE=min(MAX_FUSED_SIZE, next_power_of_2(n_words)),
        num_warps=32,
    )


def _import_liger() -> bool:
    """Import liger-kernel, unless it is imported, without peft and transformers.

    It imports peft only to learn whether peft is there, and transformers only to ask for an accelerator other than
    CUDA. Both import scikit-learn: 2 to 4 s of the first training step.
    """
    if "liger_kernel.utils" in sys.modules:
        return True
    left_out = [name for name in ("peft", "transformers") if name not in sys.modules]
    sys.modules |= dict.fromkeys(left_out)  # type: ignore[arg-type] # None: importing it raises ModuleNotFoundError
    try:
        import liger_kernel.ops.cross_entropy
        import liger_kernel.utils
    finally:
        for name in left_out:
            del sys.modules[name]
    liger_kernel.utils.PEFT_AVAILABLE = importlib.util.find_spec("peft") is not None  # for liger's own models
    return True


_import_liger._dynamo_marked_constant = True  # type: ignore[attr-defined] # as kernels.dispatch._load


def _add_product(sum_VC: torch.Tensor, a_Vn: torch.Tensor, b_nC: torch.Tensor) -> None:
    """sum += a b, in float32, without a rounded product between (torch before 2.8 has one)."""
    if a_Vn.dtype == torch.float32 or not _WIDE_PRODUCTS:
        sum_VC += a_Vn @ b_nC
    else:
        torch.addmm(sum_VC, a_Vn, b_nC, out_dtype=torch.float32, out=sum_VC)


_WIDE_PRODUCTS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
