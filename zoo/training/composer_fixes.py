"""Where Composer 0.32 bites a user of the zoo, and a wrapper for each. Each is deleted the day Composer fixes it.

| bite (all seen by running it)                                        | wrapper                                  |
|----------------------------------------------------------------------|------------------------------------------|
| a kill while a checkpoint is written leaves half of it, by its name   | `write_atomically`                        |
| checkpoints are read with full pickle: a crafted one runs code        | `read_safely`                             |
| random state is not restored in a mid-epoch resume                    | `RestoreRandomState`                      |
| SIGTERM and Ctrl-C end the process without a checkpoint               | `StopOnSignal`, interrupts.py              |
| an old checkpoint removed by hand ends the training                   | `Saver`                                   |
| a validation cannot be stopped                                        | `StoppableTrainer`                        |
| under torchrun a resume asks for NODE_RANK, which torchrun does not set | `name_node_rank`                         |
| NCCL process groups are never ended                                   | `end_process_groups`                      |
| warnings about things that are as they should be                      | `EXPECTED_WARNINGS`                       |
| damaged checkpoints, a lost `latest` link                             | checkpoints.py                            |
| learning rates lag one batch, and are stored with the old duration    | `callbacks.LearningRate`                  |
| TensorBoard: a new file every flush, doubled points after a resume    | `loggers.TensorBoard`                     |
"""

import contextlib
import datetime
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import composer.utils.checkpoint as composer_checkpoint
import numpy as np
import torch
from composer import Callback, Trainer
from composer.callbacks import CheckpointSaver
from composer.utils import dist, reproducibility

from zoo.errors import ZooError
from zoo.files import replace_durably
from zoo.training.checkpoints import TEMPORARY
from zoo.training.composer_model import PREFIX
from zoo.training.interrupts import StopRequests

log = logging.getLogger("zoo.training")

EXPECTED_WARNINGS = (
    r".*No batches were trained for global rank",  # a resume exactly at the end of an epoch starts on the next one
    r".*device_train_microbatch_size='auto'` may potentially fail",
    r".*device_eval_microbatch_size='auto'` is an experimental feature",
    r".*FSDP2 Config/APIs are experimental",
    r".*torch\.cuda\.amp\.GradScaler.*",
    r".*The current world size .* the number of RNG state",  # resumed on another number of devices; train() says so
    r".*The checkpoint (did not include|included) .* ?CUDA RNG",  # resumed on another kind of device
)

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
        raise _refusal(path, str(error).splitlines()[0]) from error
    if strange:
        raise _refusal(path, f"it asks for {', '.join(sorted(strange))}")


def read_safely(path: str | Path, map_location: str = "cpu", mmap: bool = False):
    """Read a checkpoint of tensors and plain values; raises ZooError for any other, as `refuse_code`."""
    refuse_code(path)
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error).splitlines()[0]) from error


def refuse_other_weights(path: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """Raise ZooError unless a checkpoint is of a training, with the decoder's weights of these names and shapes.

    Composer would end in a traceback of its own or of torch's.
    """
    found = weights_of(path)
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


def weights_of(path: Path) -> dict[str, object]:
    """The weights in a checkpoint by the decoder's names.  Raises ZooError if the file is no checkpoint of Composer."""
    content = read_safely(path, mmap=True)
    state = content.get("state") if isinstance(content, dict) else None
    keys = ("model", "optimizers", "timestamp")
    if not (isinstance(state, dict) and "rng" in content and all(isinstance(state.get(key), dict) for key in keys)):
        raise ZooError(
            f"{path}: not the checkpoint of a training: it must have rng, and state with {', '.join(keys)}; "
            "bring the checkpoint back, or remove this file to continue from the one before"
        )
    return {str(name).removeprefix(PREFIX): value for name, value in state["model"].items()}


def _refusal(path: str | Path, found: str) -> ZooError:
    return ZooError(f"{path}: refused, because a checkpoint holds tensors and plain values only: {found}")


def _atomic(write: Callable[[dict, str], None]) -> Callable[[dict, str], None]:
    def write_atomically(state_dict: dict, filename: str) -> None:
        """Write under a temporary name, sync to disk, rename: under its own name a checkpoint is always whole.

        Raises OSError where the disk refuses; torch buries it under a RuntimeError about its archive.
        """
        final = Path(filename)
        temporary = final.with_name(TEMPORARY + final.name)
        try:
            temporary.unlink(missing_ok=True)  # a link there is not followed
            write(state_dict, str(temporary))
            replace_durably(temporary, final)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)  # the next one needs the room
            refused = error if isinstance(error, OSError) else error.__context__
            if isinstance(refused, OSError) and refused.errno is not None:
                raise OSError(refused.errno, refused.strerror, str(final)) from error
            raise

    return write_atomically


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """Composer with atomic writes, safe reads and without the expected warnings, for the length of a `with`."""
    write, read = composer_checkpoint._write_checkpoint_file, composer_checkpoint._torch_load_with_validation
    composer_checkpoint._write_checkpoint_file = _atomic(write)
    composer_checkpoint._torch_load_with_validation = lambda path, map_location: read_safely(path, map_location)
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            composer_checkpoint._write_checkpoint_file = write
            composer_checkpoint._torch_load_with_validation = read


class RestoreRandomState(Callback):
    """Restore the checkpoint's random state just before the first batch of a resumed run.

    Composer does so only at the start of an epoch, or when it spins the loader, which a streaming dataset avoids.
    `state_dicts` is Trainer._rng_state, set after the Trainer is made.
    """

    state_dicts: list | None = None

    def after_dataloader(self, state, logger) -> None:
        if self.state_dicts is not None:
            reproducibility.load_rng_state(self.state_dicts)
            self.state_dicts = None


class CutShort(Exception):
    """Ends a validation at a batch because the run was asked to stop; StoppableTrainer catches it."""


class StoppableTrainer(Trainer):
    """A Trainer whose validation can be left in the middle, as if it had not begun: no metric of it is recorded."""

    def _eval_loop(self, *arguments, **options) -> None:
        state = self.state
        loader, label, length = state.dataloader, state.dataloader_label, state.dataloader_len
        try:
            super()._eval_loop(*arguments, **options)
        except CutShort:
            state.set_dataloader(loader, label)
            if length is not None:
                state.dataloader_len = length


class StopOnSignal(Callback):
    """Stop at the first batch, of training or of validation, after a signal; the checkpoint saver then writes.

    All ranks stop after the same batch, whichever of them was told.  `stopped`: the run was asked to stop.
    `cut_short`: that was in a validation, whose loss is not known.
    saves: whether a checkpoint is due after so many batches; a signal that came while it was written needs no other.
    """

    def __init__(self, requests: StopRequests, saves: Callable[[int], bool]):
        self.requests, self.saves = requests, saves
        self.stopped = self.cut_short = False

    def batch_end(self, state, logger) -> None:
        self._stop_if_told(state)

    def batch_checkpoint(self, state, logger) -> None:
        if self.saves(int(state.timestamp.batch)):
            self._stop_if_told(state)

    def eval_batch_start(self, state, logger) -> None:
        if self.cut_short or self._stop_if_told(state):
            self.cut_short = True
            raise CutShort

    def _stop_if_told(self, state) -> bool:
        told = self.requests.received is not None
        if dist.get_world_size() > 1:
            anyone = state.device.tensor_to_device(torch.tensor([int(told)]))
            dist.all_reduce(anyone, reduce_operation="MAX")
            told = bool(anyone.item())
        if told and not self.stopped:
            self.stopped = True
            state.stop_training()
        return told


class Saver(CheckpointSaver):
    """A CheckpointSaver that does not end a training because an old checkpoint is gone or cannot be removed."""

    def _rotate_checkpoints(self, sharding_enabled: bool = False) -> None:
        self.saved_checkpoints = [path for path in self.saved_checkpoints if os.path.lexists(path)]
        while len(self.saved_checkpoints) > self.num_checkpoints_to_keep:
            path = self.saved_checkpoints.pop(0)
            try:
                os.remove(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning("%s: an old checkpoint that cannot be removed: %s", path, error.strerror)


def name_node_rank() -> None:
    """Set NODE_RANK, as Composer's launcher does, from what torchrun sets: GROUP_RANK, the number of the machine."""
    if "GROUP_RANK" in os.environ:
        os.environ.setdefault("NODE_RANK", os.environ["GROUP_RANK"])


def end_process_groups() -> None:
    """End torch.distributed, which Composer leaves open (NCCL warns about it at exit)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
