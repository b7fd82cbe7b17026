"""Read a checkpoint without running code from it, and refuse one that a run cannot continue from, naming the file.

A file may be undamaged and still be wrong: written by another program, for another model or another run, or renamed to
another batch.  Composer continues from some of these, and fails with a traceback for others.
"""

import contextlib
import datetime
import hashlib
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from composer import Callback

from zoo.errors import ZooError
from zoo.files import open_file, present
from zoo.training.checkpoints import Checkpoint
from zoo.training.composer_model import PREFIX

NOT_RESTORED = ".*Its state will not be restored"
_OTHER_FILE = "bring the checkpoint back, or remove this file to continue from the one before"

_reconstruct = np.zeros(1).__reduce__()[0]  # its name differs between NumPy 1 and 2, and so in the file
_ALLOWED = [
    (torch.torch_version.TorchVersion, "torch.torch_version.TorchVersion"),
    (datetime.timedelta, "datetime.timedelta"),
    (np.ndarray, "numpy.ndarray"),
    (np.dtype, "numpy.dtype"),
    (np.dtypes.UInt32DType, "numpy.dtypes.UInt32DType"),
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
]


def refuse_code(path: str | Path) -> None:
    """Raise ZooError if a checkpoint names anything but tensors and plain values; nothing of it is executed."""
    try:
        strange = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - {name for _, name in _ALLOWED}
    except (pickle.UnpicklingError, RuntimeError, ValueError) as error:  # RuntimeError: of an archive of other files
        raise _refusal(path, _reason(error)) from error
    if strange:
        raise _refusal(path, f"it asks for {', '.join(sorted(strange))}")


def read_safely(path: str | Path, map_location: str = "cpu", mmap: bool = False):
    """Read a checkpoint of tensors and plain values; raises ZooError for any other, as `refuse_code`."""
    refuse_code(path)
    try:
        with torch.serialization.safe_globals(cast(Any, _ALLOWED)):
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _refusal(path, _reason(error)) from error


def refuse_other_weights(path: Path, state: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise ZooError unless a checkpoint's state has the decoder's weights of these names and shapes."""
    found = weights_of(state)
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is not part of the model" for name in sorted(found) if name not in expected]
    for name, tensor in expected.items():
        shape = getattr(found.get(name), "shape", None)
        if name in found and shape != tensor.shape:
            what = type(found[name]).__name__ if shape is None else list(shape)
            wrong.append(f"{name} must be {list(tensor.shape)}; found {what}")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ZooError(
            f"{path}: not the weights of this version's model: {wrong[0]}{more}. "
            f"Continue the run with the version that began it, or remove {path.parents[1]} to start over"
        )


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state in a checkpoint of Composer; its tensors stay in the file until they are used.

    Raises ZooError if the file is no checkpoint of a training, or is one of another batch than its name says.
    """
    path = checkpoint.path
    content = read_safely(path, mmap=True)
    state = content.get("state") if isinstance(content, dict) else None
    keys = ("model", "optimizers", "timestamp")
    if not (isinstance(state, dict) and "rng" in content and all(isinstance(state.get(key), dict) for key in keys)):
        raise ZooError(
            f"{path}: not the checkpoint of a training: it must have rng, and state with {', '.join(keys)}; "
            f"{_OTHER_FILE}"
        )
    clock = state["timestamp"].get("Timestamp")
    batch = clock.get("batch") if isinstance(clock, dict) else None
    if batch != checkpoint.batch:
        raise ZooError(f"{path}: its name says batch {checkpoint.batch}, and it is of batch {batch}; {_OTHER_FILE}")
    return state


def weights_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights in a checkpoint's state by the decoder's names."""
    return {str(name).removeprefix(PREFIX): value for name, value in state["model"].items()}


class OfRun(Callback):
    """Writes into each checkpoint which files of the run folder belong to it.

    run: the random id that data.json has too.  metrics: says what metrics.jsonl holds, as `JsonLines.mark`; None on
    processes that do not write it.
    """

    def __init__(self, run: str | None, metrics: Callable[[], dict[str, Any]] | None = None):
        self.run, self.metrics = run, metrics

    def state_dict(self) -> dict[str, Any]:
        return {"run": self.run, "metrics": self.metrics() if self.metrics else None}


def _of_run(state: Mapping[str, Any], name: str) -> Any:
    callbacks = state.get("callbacks")
    found = callbacks.get(OfRun.__name__) if isinstance(callbacks, dict) else None
    return found.get(name) if isinstance(found, dict) else None


def run_of(state: Mapping[str, Any]) -> str | None:
    """The id of the run that wrote a checkpoint; None for one of an earlier version."""
    run = _of_run(state, "run")
    return run if isinstance(run, str) else None


def metrics_are_of(state: Mapping[str, Any], path: Path) -> bool:
    """Whether metrics.jsonl begins with the records that it had when the checkpoint was written.

    True where it is missing, which is told elsewhere, and for a checkpoint of an earlier version.
    """
    mark = _of_run(state, "metrics")
    size = mark.get("bytes") if isinstance(mark, dict) else None
    if not isinstance(size, int) or size < 0 or not present(path):
        return True
    with open_file(path) as file:
        return hashlib.sha256(file.read(size)).hexdigest() == mark.get("sha256")


def refuse_other_run(path: Path, state: Mapping[str, Any], run: str | None) -> None:
    """Raise ZooError unless a checkpoint is of the run whose record has this id."""
    if run_of(state) != run:
        raise ZooError(f"{path}: a checkpoint of another run than {path.parents[1] / 'data.json'}; {_OTHER_FILE}")


@contextlib.contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Raise ZooError with the checkpoint's name where Composer or torch raises for its content, or skips a state."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=NOT_RESTORED)
            yield
    except ZooError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
        raise ZooError(f"{path}: a checkpoint that cannot be continued from ({why}); {_OTHER_FILE}") from error


def _reason(error: Exception) -> str:
    """The line of torch's message that says what was found; its first one may only be advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "Unpickler error" in line), (lines or ["no message"])[0])


def _refusal(path: str | Path, found: str) -> ZooError:
    return ZooError(f"{path}: refused, because a checkpoint holds tensors and plain values only: {found}")
