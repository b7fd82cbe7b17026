"""Kernels of flash-linear-attention: whether they can run here, and packed rows as they take them."""

import importlib.util
from weakref import WeakKeyDictionary

import torch

from zoo.kernels import dispatch
from zoo.kernels.documents import Documents

INSTALL = "pip install 'fla-core>=0.6,<0.7'"  # not the extra `linear`: pip would choose torch anew
_HAS_FLA = importlib.util.find_spec("fla") is not None  # found, not imported
_ends: WeakKeyDictionary[Documents, torch.Tensor] = WeakKeyDictionary()


def why_not_fla(first: torch.Tensor) -> str | None:
    """A reason why its kernels cannot run on this tensor here, or None."""
    if first.device.type != "cuda":  # in Triton's interpreter they are not tested
        return f"the tensors are on {first.device.type}, not on a CUDA device"
    if not _HAS_FLA:
        return f"flash-linear-attention is not installed; {INSTALL}"
    return dispatch.why_not_triton(first)


def laid_end_to_end(x_BT: torch.Tensor) -> torch.Tensor:
    """[B, T, ...] -> [1, B T, ...]: the rows one after the other."""
    return x_BT.reshape(1, -1, *x_BT.shape[2:])


def ends_of(documents: Documents) -> torch.Tensor:
    """int64 [n + 1], where each document of the rows laid end to end begins, and the end of the last.

    Only the device knows how many there are, so the host waits for it, once for each batch.
    """
    if documents not in _ends:
        begins_S = (documents.position_BT == 0).flatten()
        end_1 = torch.full((1,), begins_S.numel(), device=begins_S.device)
        _ends[documents] = torch.cat((begins_S.nonzero().flatten(), end_1))
    return _ends[documents]
