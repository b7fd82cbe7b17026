"""Linear attention token by token, as the formulas are written."""

import torch

from zoo.kernels.documents import Documents
from zoo.kernels.layout import wide


def linear_attention(
    q_BTKD: torch.Tensor,
    k_BTKD: torch.Tensor,
    v_BTHV: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    beta_BTH: torch.Tensor | None,
    scale: float,
    documents: Documents | None,
    state_BHDV: torch.Tensor | None,
    keep_state: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`zoo.kernels.linear_attention`."""
    q_BTHD, k_BTHD, v, decay = operands(q_BTKD, k_BTKD, v_BTHV, log_decay)
    batch, seq_len, heads, width = q_BTHD.shape
    begins_BT = None if documents is None else documents.position_BT == 0
    decay_BTHD1 = decay.exp()[..., None]
    state = v.new_zeros(batch, heads, width, v.shape[-1]) if state_BHDV is None else state_BHDV.to(v.dtype)
    outputs = []
    for t in range(seq_len):
        if begins_BT is not None:
            state = torch.where(begins_BT[:, t, None, None, None], 0.0, state)
        state = decay_BTHD1[:, t] * state
        k_BHD1, v_BH1V = k_BTHD[:, t, :, :, None], v[:, t, :, None]
        if beta_BTH is not None:  # replaces the value that the state has for this key, instead of adding to it
            v_BH1V = (v_BH1V - k_BHD1.mT @ state) * wide(beta_BTH)[:, t, :, None, None]
        state = state + k_BHD1 @ v_BH1V
        outputs.append(q_BTHD[:, t, :, None] @ state)
    o_BTHV = torch.cat(outputs, 2).transpose(1, 2) * scale
    return o_BTHV.to(v_BTHV.dtype), state if keep_state else None


def operands(q_BTKD, k_BTKD, v_BTHV, log_decay) -> tuple[torch.Tensor, ...]:
    """q_BTHD, k_BTHD, v and log_decay [B, T, H, D or 1] in float32, or float64 if v is."""
    copies = v_BTHV.shape[2] // q_BTKD.shape[2]
    q, k, v, log_decay = (wide(x) for x in (q_BTKD, k_BTKD, v_BTHV, log_decay))
    if copies > 1:
        q, k = (x.repeat_interleave(copies, 2) for x in (q, k))
    log_decay = log_decay if log_decay.dim() == 4 else log_decay[..., None]
    return q, k, v, log_decay.to(v.dtype)
