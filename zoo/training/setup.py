"""Everything a session settles before the engine starts: device, data, batches, checkpoint."""

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from composer import DataSpec
from composer.utils import dist

from zoo import data
from zoo.data.config import Synthetic
from zoo.data.errors import DataError
from zoo.data.identity import DataRecord, InitRecord
from zoo.data.token_bytes import token_bytes
from zoo.errors import Problem, RecipeError, ZooError
from zoo.files import present, write_text
from zoo.model import build_model
from zoo.recipe import Recipe
from zoo.recipe.seal import sealed
from zoo.runs.folder import RunFolder
from zoo.training import checkpoints
from zoo.training.checkpoint_content import (
    metrics_are_of,
    read_state,
    refuse_code,
    refuse_other_run,
    refuse_other_weights,
    run_of,
)
from zoo.training.checkpoints import Checkpoint
from zoo.training.composer_fixes import name_node_rank
from zoo.training.composer_model import count_tokens
from zoo.training.continuing import (
    Change,
    check_data,
    prepare_again,
    refuse_untrained,
    with_absolute_paths,
    write_record,
)
from zoo.training.device import resolve_micro_batch, resolve_precision, resolve_workers, rows_per_device, why_no_graph
from zoo.training.environment import record_environment
from zoo.training.initial import Initial
from zoo.training.interrupts import StopRequests
from zoo.training.names import check_patterns
from zoo.training.plan import Plan
from zoo.training.processes import join_processes
from zoo.training.screen import Screen

DATA_TIMEOUT_S = 24 * 3600  # the other processes wait while the first of each machine prepares the data


@dataclass(frozen=True)
class Device:
    """This process's device and its place among the processes."""

    on_gpu: bool
    rank: int
    local_rank: int
    world_size: int
    precision: str
    per_device: int
    micro_batch: int | str
    sharded: bool

    @classmethod
    def make(cls, train, seq_len: int) -> "Device":
        """Settle what the recipe leaves to the device, and join the other processes if there are any."""
        if (why := train.schedule_problem(seq_len)) is not None:
            hint = "shorten train.schedule.warmup, or write it as a share of the duration: 0.1dur"
            raise RecipeError([Problem(f"{why}; {hint}", key="train.schedule")])
        name_node_rank()
        on_gpu, world_size = torch.cuda.is_available(), dist.get_world_size()
        sharded = world_size > 1 and train.parallelism == "fsdp2"
        per_device = rows_per_device(train.rows(seq_len), world_size)
        if train.cuda_graph == "on" and (why := why_no_graph(train, on_gpu, world_size)) is not None:
            raise RecipeError([Problem(f"cannot be on: {why}; auto trains without a graph", key="train.cuda_graph")])
        device = cls(
            on_gpu=on_gpu,
            rank=dist.get_global_rank(),
            local_rank=dist.get_local_rank(),
            world_size=world_size,
            precision=resolve_precision(train, on_gpu),
            per_device=per_device,
            micro_batch=resolve_micro_batch(train, per_device, on_gpu, sharded),
            sharded=sharded,
        )
        if world_size > 1:
            join_processes(on_gpu, DATA_TIMEOUT_S)
        return device

    @property
    def name(self) -> str:
        """What Composer calls it."""
        return "gpu" if self.on_gpu else "cpu"


@dataclass(frozen=True)
class Setup:
    """What every part of a session reads.  initial: the weights of `train.init_from`, None where a run resumes."""

    recipe: Recipe
    folder: RunFolder
    screen: Screen
    device: Device
    prepared: data.PreparedData
    plan: Plan
    checkpoint: Checkpoint | None
    run: str | None  # the id that checkpoints and data.json share; None in a run of an earlier version
    initial: Initial | None = None

    @property
    def from_batch(self) -> int:
        """Batches that earlier sessions have done."""
        return self.checkpoint.batch if self.checkpoint else 0

    @property
    def has_answers(self) -> bool:
        """Whether the targets are the answers of synthetic tasks, of which validation counts the right ones."""
        return all(isinstance(s.source, Synthetic) for streams in self.prepared.streams.values() for s in streams)

    def loader(self, split: str) -> DataSpec | None:
        """Batches of a split for Composer, None if it has no rows."""
        if not self.prepared.rows(split):
            return None
        settings: dict[str, Any] = {
            "batch_size": self.device.per_device,
            "shuffle": self.recipe.data.shuffle,
            "seed": self.recipe.seed,
        }
        workers = resolve_workers(self.recipe.train, split, self.device.on_gpu, self.device.world_size)
        try:
            made = data.loader(self.prepared, split, **settings, num_workers=workers)
        except data.DataError:
            if self.recipe.train.workers != "auto" or workers == 1:
                raise
            made = data.loader(self.prepared, split, **settings, num_workers=1)  # /dev/shm or open files were too few
        return DataSpec(made.dataloader, get_num_tokens_in_batch=count_tokens)

    def token_bytes(self) -> np.ndarray | None:
        """Bytes of each token for bits per byte, None where validation is not of text.  After the loaders are made.

        All processes must call it; the first one reads the rows.
        """
        found: list[Any] = [None]
        if self.device.rank == 0 and self.prepared.rows("validation"):
            found[0] = token_bytes(self.prepared, "validation", self.recipe.model.vocab_size)
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def init_record(self) -> InitRecord | None:
        """The weights that the run began with, also where an earlier session read them; None if they were drawn."""
        if self.initial is not None:
            return self.initial.record
        if self.recipe.train.init_from is None or not present(self.folder.data):
            return None
        return DataRecord.read(self.folder.data).init_from

    @classmethod
    def make(cls, recipe, folder: RunFolder, screen: Screen, changes: list[Change], requests: StopRequests) -> "Setup":
        """Prepare the data, plan the batches, find the checkpoint, and write down what is about to happen.

        Raises RecipeError or DataError before anything is trained if something of it cannot work.
        """
        seq_len = recipe.seq_len
        device = Device.make(recipe.train, seq_len)
        initial = _checked_weights(recipe, folder)
        requests.enter("ends; prepared pieces of the data are kept", at_once=True)
        prepared = prepare_again(folder, recipe, changes)
        requests.enter("ends when model and data are set up")
        plan = Plan.make(recipe.train, recipe.eval, seq_len, prepared.rows("train"))
        checkpoint = _agreed(folder, screen, device.rank)
        state = read_state(checkpoint) if checkpoint else None  # whose batch is that of its name
        run = _agreed_run(folder, checkpoint, state, device.rank)
        setup = cls(recipe, folder, screen, device, prepared, plan, checkpoint, run, initial)
        if initial is not None:
            initial.check_tokenizer(prepared.tokenizer, screen.say)
        if setup.from_batch > plan.total:
            message = f"the run has done {setup.from_batch} batches, and {recipe.train.duration} is {plan.total}"
            raise RecipeError([Problem(message, key="train.duration")])
        if setup.from_batch == plan.total:
            refuse_untrained(folder, changes)
        record = _same_data(setup, changes).model_copy(update={"init_from": setup.init_record()})
        if checkpoint and state is not None:  # before a complete run loses its summary
            refuse_other_weights(checkpoint.path, state, build_model(recipe, device="meta").state_dict())
        if device.rank == 0:
            if state is not None and not metrics_are_of(state, folder.metrics):
                screen.say(f"{folder.metrics}: damaged or edited: not the records of the batches before this session")
            setup.write_down(changes, record)
        return setup

    def write_down(self, changes: list[Change], record: DataRecord) -> None:
        """Recipe, environment and the record of the data into the run folder; what happens next onto the screen."""
        self._say_if_last_is_missing()
        self.folder.summary.unlink(missing_ok=True)  # no longer complete
        write_text(self.folder.recipe, sealed(with_absolute_paths(self.recipe).dump()))
        write_record(self.folder.data, record)
        record_environment(
            self.folder.environment,
            seed=self.recipe.seed,
            precision=self.device.precision,
            world_size=self.device.world_size,
            from_batch=self.from_batch,
        )
        for change in changes:
            self.screen.say(f"changed since the last session: {change}")
        if any(change.key == "train.duration" for change in changes):
            self.screen.say("the learning rate of the batches to come follows the new duration")
        if self.checkpoint and self.from_batch:
            self.screen.say(f"resumes after batch {self.from_batch} of {self.plan.total}, from {self.checkpoint.path}")
        else:
            for sentence in self.initial.notes(self.recipe.model) if self.initial else ():
                self.screen.say(sentence)
            if self.initial:
                self.screen.say(f"starts from the weights in {self.initial.file}")
            self.screen.say(f"trains {self.plan.total} batches of {self.plan.tokens_per_batch:,} tokens")

    def _say_if_last_is_missing(self) -> None:
        """Of a complete run whose last checkpoint is gone, batches are trained again, perhaps with other rates."""
        summary = self.folder.read_summary()
        ended = summary.get("batches") if summary else None
        if isinstance(ended, int) and ended > self.from_batch:
            self.screen.say(
                f"the checkpoint of batch {ended}, at which the run was complete, is missing: batches from "
                f"{self.from_batch + 1} on are trained again"
            )


def _checked_weights(recipe, folder: RunFolder) -> Initial | None:
    """The weights of `train.init_from`; None if there are none, or if the folder has checkpoints to resume from.

    Raises RecipeError before the data are prepared if they do not fit, or if patterns of `train` name no parameters.
    """
    train = recipe.train
    if train.freeze or train.optimizer.lr_multipliers:
        check_patterns([name for name, _ in build_model(recipe, device="meta").named_parameters()], train)
    if train.init_from is None or checkpoints.listed(folder.checkpoints):
        return None
    initial = Initial.find(train.init_from, folder.path)
    initial.check_model(recipe.model)
    return initial


def _same_data(setup: Setup, changes: list[Change]) -> DataRecord:
    """The record of the data, which must be that of the run and the same on every process.

    Raises RecipeError on every process if it is not; a run that starts from its first batch may have other data.
    """
    problem: list[ZooError | None] = [None]
    record = DataRecord.of(setup.prepared, read_files=setup.device.rank == 0, run=setup.run)
    if setup.device.rank == 0 and setup.checkpoint is not None:
        try:
            what = f"resumes after batch {setup.from_batch}"
            for sentence in check_data(setup.folder, setup.prepared, record, what, changes):
                setup.screen.say(sentence)
        except ZooError as error:
            problem[0] = error
    dist.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise problem[0]
    digests = dist.all_gather_object(DataRecord.of(setup.prepared, read_files=False).digest)
    if other := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
        raise DataError(
            f"data: process {other[0]} has other rows than process 0; every machine must read the same data "
            "(the same files, or one data_cache on a disk that all see)"
        )
    return record


def _agreed_run(folder: RunFolder, checkpoint: Checkpoint | None, state: dict | None, rank: int) -> str | None:
    """The id of the run, the same on every process: a new one for a new run, else that of its record and checkpoint.

    Raises ZooError if the checkpoint is of another run than the record; a lost record gets the checkpoint's id again.
    """
    if checkpoint is None or state is None:
        found = [secrets.token_hex(8) if rank == 0 else None]
        dist.broadcast_object_list(found, src=0)
        return found[0]
    if present(folder.data):
        refuse_other_run(checkpoint.path, state, DataRecord.read(folder.data).run)
    return run_of(state)


def _agreed(folder: RunFolder, screen: Screen, rank: int) -> Checkpoint | None:
    """The newest good checkpoint, as rank 0 sees it, on every process."""
    found = [checkpoints.newest_good(folder.checkpoints, screen.say) if rank == 0 else None]
    if found[0] is not None:
        refuse_code(found[0].path)  # again when it is read; here the error can name the file, which Composer links to
    dist.broadcast_object_list(found, src=0)
    if found[0] is None and (left := [path for path in (folder.summary, folder.weights) if path.exists()]):
        raise ZooError(
            f"{folder.checkpoints}: no checkpoint, but {left[0]} of a complete run: training would start over. "
            f"Bring a checkpoint back, use another --run-dir, or remove {folder.path} to start over"
        )
    return found[0]
