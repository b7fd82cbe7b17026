"""What happens around each batch: learning rate, clipping, the check for non-finite numbers, the record of metrics."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from composer import Callback
from composer.utils import dist

from zoo.errors import ZooError
from zoo.training.plan import Plan

LOSS = "loss/train/total"  # Composer's name of a batch's loss


class LearningRate(Callback):
    """Set each batch's learning rate from the plan.

    Composer's schedulers are stepped before its clock, so that their rates lag a batch, and they are stored in
    checkpoints, where an extended duration would not reach them. A function of the batch number has neither flaw.
    """

    def __init__(self, plan: Plan, peaks: Sequence[float]):
        """peaks: the highest rate of each parameter group, read before a checkpoint's are loaded."""
        self.plan, self.peaks = plan, list(peaks)

    def batch_start(self, state, logger) -> None:
        ratio = self.plan.lr_ratio(int(state.timestamp.batch))
        for group, peak in zip(state.optimizers[0].param_groups, self.peaks, strict=True):
            group["lr"] = peak * ratio


class Beats(Callback):
    """Tell a watchdog, called as beat(what), of every batch of training and validation and of every checkpoint."""

    def __init__(self, beat: Callable[[str], None]):
        self.beat = beat

    def fit_start(self, state, logger) -> None:
        self.beat("training began")

    def batch_end(self, state, logger) -> None:
        self.beat(f"batch {int(state.timestamp.batch)}")

    def batch_checkpoint(self, state, logger) -> None:
        self.beat(f"batch {int(state.timestamp.batch)} and what is due after it")

    def eval_batch_end(self, state, logger) -> None:
        self.beat(f"a batch of the validation after batch {int(state.timestamp.batch)}")


class ClipGradients(Callback):
    """Scale the gradients down to `max_norm` (None: leave them); `norm` is the norm before, over all devices."""

    def __init__(self, max_norm: float | None):
        self.max_norm = math.inf if max_norm is None else max_norm
        self.norm: torch.Tensor | None = None

    def after_train_batch(self, state, logger) -> None:
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.max_norm)
        self.norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm


class NonFinite(ZooError):
    """The loss or the gradient norm became infinite or not a number."""


def refuse_non_finite(batch: int, numbers: Mapping[str, float], last_good: Callable[[], str]) -> None:
    """Raise NonFinite if one of the numbers, such as the loss of a batch, is not finite.  numbers: by their names."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise NonFinite(
                f"batch {batch}: the {name} is {value}; training stopped. {last_good()} A lower learning rate "
                "(--set train.optimizer.lr=...) or a longer warm-up usually helps."
            )


def timed_event() -> torch.cuda.Event:
    """Record an event on the GPU's current stream, so that the time between two of them can be read."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Numbers:
    """Numbers of a batch by name, the loss first, read at its end.

    mark: None, or records the end of the batch on the GPU, see Metrics. If the loss is on the GPU too (`late`), the
    copy of the numbers is started here, and `read` waits for it.
    """

    def __init__(
        self, mark: Callable[[], torch.cuda.Event] | None, loss: float | torch.Tensor, **others: float | torch.Tensor
    ):
        self.names, numbers = ["loss", *others], [loss, *others.values()]
        self.values: Sequence[float | torch.Tensor] | torch.Tensor = numbers
        self.late = mark is not None and isinstance(loss, torch.Tensor) and loss.is_cuda
        if self.late:
            every = torch.stack([torch.as_tensor(number).detach().reshape(()).float() for number in numbers])
            self.values = torch.empty(len(every), pin_memory=True).copy_(every, non_blocking=True)
        self.end = None if mark is None else mark()

    def read(self) -> dict[str, float]:
        """The numbers by name.  Waits for the end of the batch."""
        if self.end is not None:
            self.end.synchronize()
        return {name: float(number) for name, number in zip(self.names, self.values, strict=True)}


@dataclass(frozen=True)
class _Batch:
    """A batch whose record is not finished.  wall_s: what it took by Python's clock.  start: an event, on a GPU."""

    record: dict
    numbers: Numbers
    tokens: int
    wall_s: float
    start: torch.cuda.Event | None

    def seconds(self) -> float:
        """What the batch took. On a GPU that is only known after its numbers were read."""
        if self.start is None or self.numbers.end is None:
            return self.wall_s
        return self.start.elapsed_time(self.numbers.end) / 1000


class Metrics(Callback):
    """Collect a record for each batch and each validation, and hand it to the zoo's writers and Composer's loggers.

    writers: called as writer(record) on rank 0. A batch's record has batch (batches done), tokens, time_s, loss, lr,
    grad_norm, tokens_per_s and, where the device's peak is known, mfu; a validation's has batch, tokens, time_s,
    validation_loss (nats a target) and, where rows are text, validation_bits_per_byte (of the same targets' bytes),
    or, where targets are the answers of a task, validation_accuracy.
    check: called with the batch and its loss and gradient norm, or its validation loss, before a record is written; it
    raises to stop the training.
    saves: whether a checkpoint is due after so many batches.
    after_batch: called once after each batch; the numbers that it returns join the record.
    mark: records an event on the GPU (`timed_event`). Python ends a batch before the GPU does, so that tokens_per_s is
    computed from the time between events. None elsewhere, where it is computed from Python's time. Both leave
    validations out, and count checkpoints and the scoring of tasks.

    Where the loss is still on a GPU, a batch's record is finished after the next batch has been started, so that the
    GPU never waits for Python; but before a validation, a checkpoint and the end.
    """

    WINDOW = 20  # batches that tokens_per_s and mfu are averaged over

    def __init__(
        self,
        clip: ClipGradients,
        writers: list,
        mfu_per_token: float | None,
        check: Callable[[int, Mapping[str, float]], None] = lambda batch, numbers: None,
        saves: Callable[[int], bool] = lambda batch: False,
        after_batch: Callable[[], dict[str, torch.Tensor]] = dict,
        mark: Callable[[], torch.cuda.Event] | None = None,
    ):
        self.clip, self.writers, self.check, self.saves = clip, writers, check, saves
        self.after_batch, self.mark = after_batch, mark
        self.mfu_per_token = mfu_per_token
        self._start: torch.cuda.Event | None = None  # of the next batch
        self._waiting: deque[_Batch] = deque()
        self._recent: deque[tuple[int, float]] = deque(maxlen=self.WINDOW)
        self._n_batches = 0

    def fit_start(self, state, logger) -> None:
        self._begin()

    def batch_end(self, state, logger) -> None:
        clock = state.timestamp
        record = self._place(state) | {"loss": None, "lr": state.optimizers[0].param_groups[0]["lr"]}
        record |= {"grad_norm": None, "tokens_per_s": None}
        if self.mfu_per_token is not None:
            record["mfu"] = None
        norm = cast(torch.Tensor, self.clip.norm)  # the gradients of this batch were clipped
        numbers = Numbers(self.mark, state.total_loss_dict[LOSS], grad_norm=norm, **self.after_batch())
        tokens = int(clock.token - state.previous_timestamp.token)
        self._waiting.append(_Batch(record, numbers, tokens, clock.batch_wct.total_seconds(), self._start))
        self._start = numbers.end
        self._finish(logger, 1 if numbers.late else 0)

    def eval_start(self, state, logger) -> None:
        self._finish(logger)

    def batch_checkpoint(self, state, logger) -> None:
        if self.saves(int(state.timestamp.batch)) or state.timestamp >= state.max_duration:
            self._finish(logger)

    def fit_end(self, state, logger) -> None:
        self._finish(logger)

    def _finish(self, logger, left: int = 0) -> None:
        """Check and write the records of all batches but the latest `left`."""
        while len(self._waiting) > left:
            batch = self._waiting.popleft()
            record = batch.record | batch.numbers.read()
            record["tokens_per_s"] = self._speed(batch.tokens, batch.seconds())
            if self.mfu_per_token is not None:
                record["mfu"] = record["tokens_per_s"] * self.mfu_per_token
            self.check(record["batch"], {"loss": record["loss"], "gradient norm": record["grad_norm"]})
            self._write(record, logger, "train")

    def eval_end(self, state, logger) -> None:
        found = {name: float(metric.compute()) for name, metric in state.eval_metrics["validation"].items()}
        record = self._place(state) | {f"validation_{name}": value for name, value in found.items()}
        if "loss" in found:  # after the last batch no other loss would show it
            self.check(record["batch"], {"validation loss": found["loss"]})
        self._write(record, logger, "validation")
        self._begin()

    def scores(self, state, logger, found: dict) -> None:
        """Write the scores of evaluation tasks, of the names task/LABEL/METRIC."""
        self._finish(logger)
        self._write(self._place(state) | found, logger, "scores")

    def _begin(self) -> None:
        """The next batch begins now; what came before does not count in it."""
        if self.mark is not None:
            self._start = self.mark()

    def _speed(self, tokens: int, seconds: float) -> float:
        """Tokens a second over the latest batches.

        The first batch of a session compiles kernels and searches for the micro-batch: it counts in its own record,
        and in none after it.
        """
        self._n_batches += 1
        if self._n_batches == 2:
            self._recent.clear()
        self._recent.append((tokens, seconds))
        return sum(tokens for tokens, _ in self._recent) / max(1e-9, sum(s for _, s in self._recent))

    def _place(self, state) -> dict:
        clock = state.timestamp
        return {
            "batch": int(clock.batch),
            "tokens": int(clock.token),
            "time_s": round(clock.total_wct.total_seconds(), 3),
        }

    def _write(self, record: dict, logger, label: str) -> None:
        numbers = {name: value for name, value in record.items() if name not in ("batch", "tokens", "time_s")}
        logger.log_metrics({f"{label}/{name.removeprefix('validation_')}": value for name, value in numbers.items()})
        if dist.get_global_rank() == 0:
            for writer in self.writers:
                writer(record)
