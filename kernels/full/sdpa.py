"""Causal attention by torch's scaled_dot_product_attention, where each row is one document."""

from functools import cache

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.kernels import dispatch

# cuDNN is the fastest here, by 1.5x on an H200, but torch does not choose it first (docs/log.md).
_BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def full_attention(q_BTHD, k_BTKD, v_BTKV, *, q_rope, k_rope, scale, documents, sinks, softcap):
    """`zoo.kernels.full_attention` without documents, sinks and softcap: o_BTHV."""
    q, k, v = q_BTHD, k_BTKD, v_BTKV
    if q_rope is not None:
        q = torch.cat([q, q_rope], -1)
        k = torch.cat([k, k_rope[:, :, None].expand(-1, -1, k.shape[2], -1)], -1)
    else:
        q = q.contiguous()  # a piece of a product may not be aligned as torch's kernels require
    if not _cudnn_takes(q, v):  # the other fast paths need equal widths; channels of zeros change no result
        width = max(q.shape[-1], v.shape[-1])
        q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    if q.is_cuda:
        with sdpa_kernel(_BACKENDS, set_priority=True):
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    else:
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    return o.transpose(1, 2)[..., : v_BTKV.shape[-1]]


def _cudnn_takes(q: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether cuDNN attends, forward and backward, with these widths as they are."""
    widths = q.shape[-1], v.shape[-1]
    fits = all(width <= 128 and width % 8 == 0 for width in widths)
    return fits and q.dtype in (torch.float16, torch.bfloat16) and _has_cudnn(q.device)


def _has_cudnn(device: torch.device) -> bool:
    return _ask_for_cudnn(device)


@cache
def _ask_for_cudnn(device: torch.device) -> bool:
    if device.type != "cuda" or not torch.backends.cudnn.is_available():
        return False
    return torch.backends.cuda.cudnn_sdp_enabled() and dispatch.has_capability(device, (9, 0))


_has_cudnn._dynamo_marked_constant = True  # type: ignore[attr-defined] # as in zoo/kernels/dispatch.py
