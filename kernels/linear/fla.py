"""Linear attention by the Triton kernels of flash-linear-attention (package fla-core)."""

import importlib.util
import logging
import warnings
from typing import Any

import torch

from zoo.kernels.documents import Documents
from zoo.kernels.linear import reference
from zoo.kernels.outside import ends_of, laid_end_to_end, use_tiles

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it could be faster with other packages
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.gla import chunk_gla
    from fla.ops.kda import chunk_kda
    from fla.ops.simple_gla import chunk_simple_gla
    from fla.utils import IS_NVIDIA_HOPPER, TRITON_ABOVE_3_4_0, TRITON_ABOVE_3_7_1
use_tiles()

log = logging.getLogger("zoo.kernels")

# The backward kernel for one decay a head is wrong on Hopper as Triton 3.4 to 3.7.0 compiles it, and fla refuses it
# (flash-linear-attention #640). The kernels with one decay for each channel are not affected.
HEADS_REFUSED = (
    IS_NVIDIA_HOPPER and TRITON_ABOVE_3_4_0 and not TRITON_ABOVE_3_7_1 and not importlib.util.find_spec("tilelang")
)
if HEADS_REFUSED:
    log.info("linear_attention: decays of a head run as those of its channels: Triton before 3.7.1 on a Hopper GPU")


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
    """`zoo.kernels.linear_attention`. A single token is a few products, which need no chunks."""
    (batch, seq_len, heads, _), width = v_BTHV.shape, q_BTKD.shape[-1]
    if seq_len == 1:
        options: dict[str, Any] = {"beta_BTH": beta_BTH, "scale": scale, "documents": documents}
        options |= {"state_BHDV": state_BHDV, "keep_state": keep_state}
        return reference.linear_attention(q_BTKD, k_BTKD, v_BTHV, log_decay, **options)
    copies = heads // q_BTKD.shape[2]
    if copies > 1 and beta_BTH is None:  # kernels of the delta rule read the keys that heads share
        q_BTKD, k_BTKD = (x.repeat_interleave(copies, 2) for x in (q_BTKD, k_BTKD))
    log_decay = log_decay.float()
    if HEADS_REFUSED and log_decay.dim() == 3:
        log_decay = log_decay[..., None].expand(-1, -1, -1, width)
    tensors = {"q": q_BTKD, "k": k_BTKD, "v": v_BTHV, "g": log_decay}
    if beta_BTH is not None:
        tensors["beta"] = beta_BTH
    options = {"scale": scale, "output_final_state": keep_state}
    if state_BHDV is not None:
        options["initial_state"] = state_BHDV.float()
    if documents is not None:
        tensors = {name: laid_end_to_end(x) for name, x in tensors.items()}
        options["cu_seqlens"] = ends_of(documents)
    kernel = _kernel(by_channel=log_decay.dim() == 4, delta=beta_BTH is not None)
    o, state = kernel(**{name: x.contiguous() for name, x in tensors.items()}, **options)
    return o.reshape(batch, seq_len, heads, -1).to(v_BTHV.dtype), state if keep_state else None


def _kernel(by_channel: bool, delta: bool):
    if delta:
        return chunk_kda if by_channel else chunk_gated_delta_rule
    return chunk_gla if by_channel else chunk_simple_gla
