"""What happens around each batch: learning rate, clipping, the check for non-finite numbers, the record of metrics."""

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from composer import Callback
from composer.utils import dist

from zoo.errors import ZooError
from zoo.training.plan import Plan


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
        self._norm: torch.Tensor | None = None

    @property
    def norm(self) -> float:
        return float(self._norm)

    def after_train_batch(self, state, logger) -> None:
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.max_norm)
        self._norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm


class NonFinite(ZooError):
    """The loss or the gradient norm became infinite or not a number."""


class StopIfNotFinite(Callback):
    """Raise NonFinite after a batch whose loss or gradient norm is not finite, before a checkpoint can be written."""

    def __init__(self, clip: ClipGradients, last_good: Callable[[], str]):
        self.clip, self.last_good = clip, last_good

    def batch_end(self, state, logger) -> None:
        numbers = {"loss": state.total_loss_dict["loss/train/total"], "gradient norm": self.clip.norm}
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise NonFinite(
                    f"batch {int(state.timestamp.batch)}: the {name} is {value}; training stopped. "
                    f"{self.last_good()} A lower learning rate (--set train.optimizer.lr=...) or a longer "
                    "warm-up usually helps."
                )


class Metrics(Callback):
    """Collect a record for each batch and each validation, and hand it to the zoo's writers and Composer's loggers.

    writers: called as writer(record) on rank 0. A batch's record has batch (batches done), tokens, time_s, loss, lr,
    grad_norm, tokens_per_s and, where the device's peak is known, mfu; a validation's has batch, tokens, time_s,
    validation_loss (nats a target) and, where rows are text, validation_bits_per_byte (of the same targets' bytes).
    """

    WINDOW = 20  # batches that tokens_per_s and mfu are averaged over

    def __init__(self, clip: ClipGradients, writers: list, mfu_per_token: float | None):
        self.clip, self.writers = clip, writers
        self.mfu_per_token = mfu_per_token
        self._recent: deque[tuple[int, float]] = deque(maxlen=self.WINDOW)
        self._n_batches = 0

    def batch_end(self, state, logger) -> None:
        clock = state.timestamp
        tokens_per_s = self._speed(int(clock.token - state.previous_timestamp.token), clock.batch_wct.total_seconds())
        record = self._place(state) | {
            "loss": state.total_loss_dict["loss/train/total"],
            "lr": state.optimizers[0].param_groups[0]["lr"],
            "grad_norm": self.clip.norm,
            "tokens_per_s": tokens_per_s,
        }
        if self.mfu_per_token is not None:
            record["mfu"] = tokens_per_s * self.mfu_per_token
        self._write(record, logger, "train")

    def eval_end(self, state, logger) -> None:
        found = {name: float(metric.compute()) for name, metric in state.eval_metrics["validation"].items()}
        record = self._place(state) | {f"validation_{name}": value for name, value in found.items()}
        self._write(record, logger, "validation")

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
