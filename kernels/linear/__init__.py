"""Linear attention with decay: a state of fixed size in place of keys and values, with or without the delta rule."""

import torch

from zoo.kernels import checks, dispatch
from zoo.kernels.documents import Documents
from zoo.kernels.outside import why_not_fla

MAX_KEY = 256  # channels of a key that the kernels of flash-linear-attention take


def _why_not_fla(q, k, *others, **options) -> str | None:
    if k.shape[-1] > MAX_KEY:
        return f"its kernels take keys of up to {MAX_KEY} channels, not {k.shape[-1]}"
    return why_not_fla(q)


dispatch.register(
    "linear_attention",
    dispatch.Implementation("fla", "zoo.kernels.linear.fla:linear_attention", _why_not_fla),
    dispatch.Implementation("chunked", "zoo.kernels.linear.chunked:linear_attention", slow=True),
    dispatch.Implementation("reference", "zoo.kernels.linear.reference:linear_attention", slow=True),
)


def linear_attention(
    q_BTKD: torch.Tensor,
    k_BTKD: torch.Tensor,
    v_BTHV: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    beta_BTH: torch.Tensor | None = None,
    scale: float = 1.0,
    documents: Documents | None = None,
    state_BHDV: torch.Tensor | None = None,
    keep_state: bool = False,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """o_t = scale q_t^T S_t, where the state S_t decays and each token's key and value are added to it.

    Without beta: S_t = diag(a_t) S_{t-1} + k_t v_t^T (gated linear attention, arXiv 2312.06635; Mamba-2, 2405.21060).
    With beta: S_t = (I - beta_t k_t k_t^T) diag(a_t) S_{t-1} + beta_t k_t v_t^T, the gated delta rule (2412.06464,
    2510.26692).
    log_decay: log a_t, at most 0, float32 or wider: [B, T, H], one for a head, or [B, T, H, D], one for each channel of
    a key.  H is a multiple of K: H / K heads share queries and keys.
    documents: the state is zero before the first token of each.  state_BHDV: the state before the first token of a row;
    not together with documents.
    Returns o_BTHV in the dtype of v, and the state after the last token, float32 (float64 for float64 input), or None
    unless keep_state. Raises ValueError if shapes or devices do not agree, or `impl` cannot serve the call.
    """
    found = checks.sizes("linear_attention", q_BTKD=q_BTKD, k_BTKD=k_BTKD, v_BTHV=v_BTHV)
    batch, seq_len, heads, width = (found[letter] for letter in "BTHD")
    if heads % found["K"]:
        raise ValueError(f"linear_attention: value heads must be a multiple of key heads; found {heads}, {found['K']}.")
    by_head = (batch, seq_len, heads)
    shapes: dict[str, tuple[torch.Tensor | None, list[tuple[int, ...]]]] = {
        "log_decay": (log_decay, [by_head, (*by_head, width)]),
        "beta_BTH": (beta_BTH, [by_head]),
        "state_BHDV": (state_BHDV, [(batch, heads, width, found["V"])]),
    }
    for name, (tensor, allowed) in shapes.items():
        if tensor is not None and (tuple(tensor.shape) not in allowed or tensor.device != v_BTHV.device):
            wanted = " or ".join(str(list(shape)) for shape in allowed)
            place = f"{list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"linear_attention: {name} must be {wanted} on {v_BTHV.device}; found {place}.")
    if documents is not None and (state_BHDV is not None or keep_state):
        raise ValueError("linear_attention: rows of several documents have no state; found documents with a state.")
    if documents is not None and tuple(documents.start_BT.shape) != (batch, seq_len):
        wrong = list(documents.start_BT.shape)
        raise ValueError(f"linear_attention: documents must be for [{batch}, {seq_len}]; found {wrong}.")
    options = {"beta_BTH": beta_BTH, "scale": float(scale), "documents": documents}
    options |= {"state_BHDV": state_BHDV, "keep_state": keep_state}
    return dispatch.call("linear_attention", impl, q_BTKD, k_BTKD, v_BTHV, log_decay, **options)
