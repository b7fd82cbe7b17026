"""The batch that nowhere waits for the device; on one GPU forward and backward as CUDA graphs where that can be.

A small model's step is hundreds of kernels of a few microseconds each, which take several times as long to start from
Python as to run. A graph is captured once and replayed with one call. A large model's step hides Python, except for
what comes after each wait for the device, of which Composer's own step has ten.

What is computed is what Composer computes, operation by operation, so that losses and gradients are the same bits.
Composer's loop still does everything else. Its `_train_batch` is replaced after the first batch of a session, which
runs in its plain form: it compiles the kernels and, with `micro_batch: auto`, finds the rows of a micro-batch. What
several processes have to agree on they exchange through their CPUs.
"""

import contextlib
import gc
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from composer import Event
from composer.core import get_precision_context
from composer.trainer.trainer import TrainerMode
from composer.utils import dist

from zoo.errors import ZooError
from zoo.model.capture import captured
from zoo.training.callbacks import LOSS
from zoo.training.composer_fixes import StoppableTrainer
from zoo.training.composer_model import count_targets
from zoo.training.processes import Hosts
from zoo.training.sharding import Exchange

log = logging.getLogger("zoo.training")

# A graph keeps the memory of its step for itself, and a validation needs memory of its own. A step that fills more than
# this share of the GPU runs for hundreds of milliseconds, behind which Python hides.
MOST_MEMORY = 0.45


class StepTrainer(StoppableTrainer):
    """Composer's Trainer; if `step` is set, that runs the batches after the first of a session.

    hosts and exchange, both set before training: what its processes exchange through their CPUs, and what its devices
    exchange in a micro-batch.
    waits_after, set before training: whether training waits for the device after so many batches.
    """

    step: "BatchStep | None" = None
    waits_after: Callable[[int], bool]
    hosts: Hosts
    exchange: Exchange

    def _train_microbatch(self, use_grad_scaling: bool, current_batch_size: float, is_final_microbatch: bool):
        self.exchange.before(is_final_microbatch)
        return super()._train_microbatch(use_grad_scaling, current_batch_size, is_final_microbatch)

    def _train_batch(self, use_grad_scaling: bool) -> dict[str, torch.Tensor] | None:
        if self.step is None or not self.first_train_batch_complete:
            return super()._train_batch(use_grad_scaling)
        try:
            loss = self.step.run(self)
        except torch.OutOfMemoryError:
            if not self.state.auto_microbatching:
                raise
            self.step = None  # Composer's own step begins the batch anew, and tries fewer rows
            return super()._train_batch(use_grad_scaling)
        # Composer now adds the batch to the time of training, and stops the clock in a validation: what the GPU has not
        # done by then would be missing.
        if loss.is_cuda and self.waits_after(int(self.state.timestamp.batch) + 1):
            torch.cuda.current_stream().synchronize()
        self.state.total_loss_dict = {LOSS: loss}
        return None  # Composer then leaves the loss on the device

    def _iter_dataloader(self, trainer_mode: TrainerMode) -> Iterator[dict[str, torch.Tensor]]:
        """Composer asks the device after each batch whether another process has come to the end of its data."""
        batches = itertools.islice(self.state.dataloader, self.state.dataloader_len and int(self.state.dataloader_len))
        while True:
            if trainer_mode == TrainerMode.TRAIN:
                self.engine.run_event(Event.BEFORE_DATALOADER)
            batch = next(batches, None)
            ended = self.hosts.any(batch is None)
            if batch is None or ended:
                if trainer_mode == TrainerMode.TRAIN:
                    self.engine.run_marker_only_event(Event.AFTER_DATALOADER)
                return
            yield batch

    def _accumulate_time_across_ranks(self, num_samples, num_tokens, batch_time):
        """Sums, and the time of the first process. Composer sends them to the device and waits until they are back."""
        seconds = batch_time.total_seconds() if dist.get_global_rank() == 0 else 0.0
        samples, tokens, seconds = self.hosts.sums(num_samples, num_tokens, seconds)
        return int(samples), int(tokens), timedelta(seconds=seconds)


class BatchStep:
    """Composer's `_train_batch` without its waits, for one GPU or for several processes.

    graph: "auto" captures what can be captured, and says in the log why it cannot; "on" fails then; "off" does not try.
    """

    def __init__(self, graph: str):
        self.graph = graph
        self._graphs: dict[tuple[int, bool], MicroBatchGraph] = {}
        self._total = torch.zeros(1)  # on the device from the first batch on
        self._pool: Any = None

    def run(self, trainer: StepTrainer) -> torch.Tensor:
        """Forward, backward, clipping and the optimiser's step. Returns the loss of the batch, [1], on the device."""
        parts = _split(trainer)
        self._prepare(trainer, parts)
        trainer.engine.run_event(Event.BEFORE_TRAIN_BATCH)
        counts = [count_targets(part) for part in parts]  # of tensors that are still on the CPU
        of_all = trainer.hosts.sums(sum(counts))[0] / dist.get_world_size()  # gradients are averaged over the devices
        for i, (part, count) in enumerate(zip(parts, counts, strict=True)):
            last = i == len(parts) - 1
            trainer.exchange.before(last)
            with trainer.exchange.around(last):
                self._run_part(trainer, part, count / of_all, i == 0)
        trainer.engine.run_event(Event.AFTER_TRAIN_BATCH)
        for optimizer in trainer.state.optimizers:
            optimizer.step()
        return self._mean()

    def _run_part(self, trainer: StepTrainer, part: dict[str, torch.Tensor], share: float, first: bool) -> None:
        graph = self._graphs.get((len(part["input_ids"]), first))
        if graph is not None:
            return graph.replay(part, share)
        if first:
            _forget_gradients(trainer)
        device = self._total.device
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in part.items()}
        forward_backward(trainer, inputs, torch.full((), share, device=device), self._total, first)

    def _mean(self) -> torch.Tensor:
        """The loss of the batch over all devices."""
        if dist.get_world_size() == 1:
            return self._total
        mean = self._total.clone()
        dist.all_reduce(mean)
        return mean.div_(dist.get_world_size())

    def _prepare(self, trainer: StepTrainer, parts: list[dict[str, torch.Tensor]]) -> None:
        """Capture the graphs that this batch needs and that are not there, if there are to be any."""
        device = trainer.state.device._device
        if self._total.device.type != device.type:  # once: captured graphs write to this memory
            self._total = torch.zeros(1, device=device)
        keys = dict.fromkeys((len(part["input_ids"]), i == 0) for i, part in enumerate(parts))
        missing = [key for key in keys if key not in self._graphs]
        if self.graph == "off" or not missing:
            return
        _forget_step(trainer)
        reason = self._too_large()
        if reason is None:
            try:
                self._capture(trainer, missing, {len(part["input_ids"]): part for part in reversed(parts)})
                return
            except RuntimeError as error:
                reason = f"the step cannot be captured: {_first_cause(error)}"
        self._graphs.clear()
        _forget_gradients(trainer)
        torch.cuda.empty_cache()
        if self.graph == "on":
            raise ZooError(f"train.cuda_graph: cannot be on: {reason}; auto trains without a graph")
        log.info("cuda_graph: not used: %s", reason)
        self.graph = "off"

    def _too_large(self) -> str | None:
        if self._graphs or self.graph == "on":
            return None
        share = torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties().total_memory
        if share <= MOST_MEMORY:
            return None
        return f"a step takes {share:.0%} of the GPU's memory, which a graph would keep; at most {MOST_MEMORY:.0%}"

    def _capture(self, trainer: StepTrainer, keys: list[tuple[int, bool]], parts: dict[int, dict]) -> None:
        """keys: (rows, whether it is a batch's first micro-batch).  parts: an example for each number of rows."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            _try(trainer, MicroBatchGraph(parts[keys[0][0]], True, self._total))
        for rows, first in keys:
            graph = MicroBatchGraph(parts[rows], first, self._total)
            graph.capture(trainer, self._pool)
            self._graphs[rows, first] = graph
            log.info("cuda_graph: forward and backward of %d rows captured", rows)


class MicroBatchGraph:
    """Forward, loss and backward of one micro-batch of fixed shape.

    first, total: as of `forward_backward`.
    """

    def __init__(self, part: dict[str, torch.Tensor], first: bool, total: torch.Tensor):
        self.inputs = {name: torch.empty_like(tensor, device=total.device) for name, tensor in part.items()}
        self.share = torch.zeros((), device=total.device)
        self.first, self.total = first, total
        self.graph: Any = None
        self.fill(part, 1.0)

    def fill(self, part: dict[str, torch.Tensor], share: float) -> None:
        """Copy a micro-batch in; share: as of `forward_backward`."""
        for name, tensor in part.items():
            self.inputs[name].copy_(tensor, non_blocking=True)
        self.share.fill_(share)

    def compute(self, trainer: StepTrainer) -> None:
        """Run the forward and backward pass of the micro-batch without a graph."""
        forward_backward(trainer, self.inputs, self.share, self.total, self.first)

    def capture(self, trainer: StepTrainer, pool: Any) -> None:
        """Record `compute`, which runs nothing."""
        if self.first:
            _forget_gradients(trainer)
        self.graph = torch.cuda.CUDAGraph()
        with captured(self.graph, pool=pool):
            self.compute(trainer)

    def replay(self, part: dict[str, torch.Tensor], share: float) -> None:
        """Copy a micro-batch in and launch the captured graph; arguments as of `fill`."""
        self.fill(part, share)
        self.graph.replay()


def forward_backward(
    trainer: StepTrainer, inputs: dict[str, torch.Tensor], share: torch.Tensor, total: torch.Tensor, first: bool
) -> None:
    """What Composer's `_train_microbatch` computes, with a number on the device where it has one of Python.

    share: the micro-batch's targets as a share of those that a device has in the batch.
    total: [1], the loss of the batch so far.
    first: total is written and not added to; gradients are added to those that are there.
    """
    state = trainer.state
    with get_precision_context(state.precision, state.precision_config):
        outputs = state.model(inputs)
    with get_precision_context(state.precision, state.precision_config):
        loss = trainer._original_model.loss(outputs, inputs)
    loss_1 = torch.zeros(1, device=loss.device).add_(loss.mean())
    part = loss_1.detach().clone().mean() * share
    if first:
        total.copy_(part)
    else:
        total += part
    loss_1.mul_(share)
    loss_1.backward()


def _split(trainer: StepTrainer) -> list[dict[str, torch.Tensor]]:
    return list(trainer._train_data_spec.split_batch(trainer.state.batch, trainer.state.device_train_microbatch_size))


def _forget_gradients(trainer: StepTrainer) -> None:
    for optimizer in trainer.state.optimizers:
        optimizer.zero_grad(set_to_none=True)


def _forget_step(trainer: StepTrainer) -> None:
    """Let go of the autograd graph of the last plain step, which Composer holds: what adds up the gradients is part of
    it, bound to the stream it ran on, and a capture runs on another."""
    trainer.state.outputs = trainer.state.loss = None
    gc.collect()


def _try(trainer: StepTrainer, graph: MicroBatchGraph) -> None:
    """Compute once as in a capture, on a stream of its own, and forget it: an operation that waits for the device
    raises its error here, where nothing has to be undone."""
    random_state = torch.cuda.get_rng_state()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    _forget_gradients(trainer)
    with torch.cuda.stream(side), _no_waiting():
        graph.compute(trainer)
    torch.cuda.current_stream().wait_stream(side)
    _forget_gradients(trainer)
    torch.cuda.set_rng_state(random_state)


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise RuntimeError for operations that wait for the device. Torch warns that this mode is a prototype."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _first_cause(error: BaseException) -> str:
    """The first line of the error that led to this one: a capture that failed ends in an error of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
