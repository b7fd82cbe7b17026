"""Kernels of flash-linear-attention: whether they can run here, their tiles, and packed rows as they take them."""

import importlib.metadata
import importlib.util
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from zoo.kernels import dispatch
from zoo.kernels.documents import Documents
from zoo.kernels.triton_cache import triton_cache

INSTALL = "pip install 'fla-core>=0.6,<0.7'"  # not the extra `linear`: pip would choose torch anew
_HAS_FLA = importlib.util.find_spec("fla") is not None  # found, not imported
log = logging.getLogger("zoo.kernels")
_ends: WeakKeyDictionary[Documents, torch.Tensor] = WeakKeyDictionary()


def why_not_fla(first: torch.Tensor) -> str | None:
    """A reason why its kernels cannot run on this tensor here, or None."""
    if first.device.type != "cuda":  # in Triton's interpreter they are not tested
        return f"the tensors are on {first.device.type}, not on a CUDA device"
    if not _HAS_FLA:
        return f"flash-linear-attention is not installed; {INSTALL}"
    return dispatch.why_not_triton(first)


def tiles_file() -> Path:
    """Where `python -m zoo.bench.linear_tiles` keeps one tile a kernel, for this GPU and these versions."""
    versions = (f"{name}-{importlib.metadata.version(name)}" for name in ("fla-core", "triton"))
    name = "-".join(["zoo-linear-tiles", torch.cuda.get_device_name(), *versions])
    return triton_cache() / f"{re.sub('[^0-9A-Za-z.-]+', '_', name)}.json"


def use_tiles() -> None:
    """Leave each kernel that `tiles_file` names the one tile that stands there; others try all of theirs once.

    To be called after the kernels are imported.  Raises ValueError for a damaged file.
    """
    if not torch.cuda.is_available() or not (file := tiles_file()).is_file():
        return
    try:
        tiles = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: damaged; delete it, and the kernels are autotuned again") from error
    for name, tuner in tuners():
        tuner.configs = [config for config in tuner.configs if tile_of(config) == tiles.get(name)] or tuner.configs
    log.info("linear_attention: takes the tiles of %s without trying others", file)


def tuners() -> Iterator[tuple[str, Any]]:
    """The autotuned kernels of flash-linear-attention that are imported (triton.runtime.Autotuner), by full name."""
    from triton.runtime.autotuner import Autotuner

    for module in [module for name, module in sys.modules.items() if name.startswith("fla.")]:
        for found in list(vars(module).values()):
            while found is not None and not isinstance(found, Autotuner):  # heuristics are around it
                found = getattr(found, "fn", None) if type(found).__module__.startswith("triton.") else None
            if found is not None:
                yield name_of(found), found


def name_of(tuner: Any) -> str:
    """Module and name of the kernel, because kernels of several modules have one name."""
    return f"{tuner.base_fn.__module__}.{tuner.base_fn.__name__}"


def tile_of(config: Any) -> dict[str, Any]:
    """The numbers of a triton.Config."""
    return {name: value for name, value in sorted(vars(config).items()) if name != "pre_hook"}


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
