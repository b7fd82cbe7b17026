"""Where Composer 0.32 bites a user of the zoo, and a wrapper for each. Each is deleted the day Composer fixes it.

| bite (all seen by running it)                                        | wrapper                                  |
|----------------------------------------------------------------------|------------------------------------------|
| a kill while a checkpoint is written leaves half of it, by its name   | `write_atomically`                        |
| checkpoints are read with full pickle: a crafted one runs code        | `checkpoint_content.read_safely`          |
| a checkpoint's strange content ends in a traceback without its name   | `checkpoint_content.named`                |
| random state is not restored in a mid-epoch resume                    | `RestoreRandomState`                      |
| SIGTERM and Ctrl-C end the process without a checkpoint               | `StopOnSignal`, interrupts.py              |
| an old checkpoint removed by hand ends the training                   | `Saver`                                   |
| a validation cannot be stopped                                        | `StoppableTrainer`                        |
| under torchrun a resume asks for NODE_RANK, which torchrun does not set | `name_node_rank`                         |
| NCCL process groups are never ended                                   | `end_process_groups`                      |
| float32 products of the process stay in TF32 after a training on a GPU | tf32.py                                  |
| warnings about things that are as they should be                      | `EXPECTED_WARNINGS`                       |
| damaged checkpoints, a lost `latest` link                             | checkpoints.py                            |
| learning rates lag one batch, and are stored with the old duration    | `callbacks.LearningRate`                  |
| TensorBoard: a new file every flush, doubled points after a resume    | `loggers.TensorBoard`                     |
| a Trainer imports scikit-learn and models of transformers: seconds    | `_no_passes`                              |
| imports of packages that training never uses: seconds                 | lean_import.py                            |
"""

import contextlib
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import composer.core.engine as composer_engine
import composer.utils.checkpoint as composer_checkpoint
import numpy as np
import torch
from composer import Callback, Trainer
from composer.callbacks import CheckpointSaver
from composer.utils import reproducibility

from zoo.files import replace_durably
from zoo.training.checkpoint_content import named, read_safely
from zoo.training.checkpoints import TEMPORARY
from zoo.training.interrupts import StopRequests
from zoo.training.processes import Hosts
from zoo.training.tf32 import tf32_as_before

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


def _naming(load: Callable) -> Callable:
    def load_checkpoint(*arguments, **options):
        """Load a checkpoint; its random state is tried here, where the file is known, and set when training begins."""
        with named(options["path"]):
            random_state = load(*arguments, **options)
            kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
            try:
                reproducibility.load_rng_state(random_state)
            finally:
                torch.set_rng_state(kept[0])
                random.setstate(kept[1])
                np.random.set_state(kept[2])
        return random_state

    return load_checkpoint


def _no_passes() -> list:
    """Of the passes that put a Trainer's algorithms in order: none, because the zoo has no algorithms.

    Composer's own passes import all of its algorithms, and with them scikit-learn, pandas and BERT of transformers.
    """
    return []


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """Composer with atomic writes, safe reads, a quick start and without the expected warnings, inside a `with`."""
    changed: list[tuple[ModuleType, str, Callable]] = [
        (composer_checkpoint, "_write_checkpoint_file", _atomic(composer_checkpoint._write_checkpoint_file)),
        (
            composer_checkpoint,
            "_torch_load_with_validation",
            lambda path, map_location: read_safely(path, map_location),
        ),
        (composer_checkpoint, "load_checkpoint", _naming(composer_checkpoint.load_checkpoint)),
        (composer_engine, "_get_default_passes", _no_passes),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changed]
    with warnings.catch_warnings(), tf32_as_before():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for module, name, function in changed:
            setattr(module, name, function)
        try:
            yield
        finally:
            for module, name, function in before:
                setattr(module, name, function)


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

    def __init__(self, requests: StopRequests, saves: Callable[[int], bool], hosts: Hosts):
        self.requests, self.saves, self.hosts = requests, saves, hosts
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
        told = self.hosts.any(self.requests.received is not None)
        if told and not self.stopped:
            self.stopped = True
            state.stop_training()
        return told


class Saver(CheckpointSaver):
    """A CheckpointSaver that does not end a training because an old checkpoint is gone or cannot be removed."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.tmp_dir_for_symlink.cleanup()  # for the link to the latest one, which is not made

    def _rotate_checkpoints(self, sharding_enabled: bool = False) -> None:
        self.saved_checkpoints: list[str] = [path for path in self.saved_checkpoints if os.path.lexists(path)]
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
