"""The training in batches: how many, when to validate and to save, and the learning rate of each. Plain arithmetic.

Every span of a recipe (tokens, epochs, shares) becomes a whole number of batches here, once, from three facts: the
batch size, the sequence length and the rows of the data. The engine then counts batches only.
"""

from dataclasses import dataclass

from zoo.errors import Problem, RecipeError
from zoo.training.config import EvalConfig, TrainConfig
from zoo.training.duration import Span
from zoo.training.schedules import ScheduleConfig


@dataclass(frozen=True)
class Plan:
    """What is done at which batch. Batches count from 0; `total` is the number of batches.

    Tokens are places of a row (batch_size x seq_len), padding and masked targets included.
    """

    total: int
    batch_size: int
    tokens_per_batch: int
    batches_per_epoch: int
    eval_every: int
    checkpoint_every: int
    warmup: int
    decay: int
    schedule: ScheduleConfig

    @classmethod
    def make(cls, train: TrainConfig, evaluation: EvalConfig, seq_len: int, n_rows: int) -> "Plan":
        """Turn the recipe's spans into batches.  n_rows: rows of one epoch (a last part of a batch is left out).

        Raises RecipeError if an epoch has no whole batch, or if warm-up and decay do not fit into the duration.
        """
        batch_size = train.rows(seq_len)
        epoch = n_rows // batch_size
        if epoch == 0:
            raise _problem("train.batch_size", f"must be at most the {n_rows} rows of the data; found {batch_size}")
        per_batch = batch_size * seq_len
        try:
            total, warmup, decay = train.schedule_batches(per_batch, epoch)
        except ValueError as error:
            raise _problem("train.schedule", str(error)) from error

        def batches(text: str) -> int:
            return Span.parse(text).batches(per_batch, epoch, total)

        return cls(
            total=total,
            batch_size=batch_size,
            tokens_per_batch=per_batch,
            batches_per_epoch=epoch,
            eval_every=max(1, batches(evaluation.every)),
            checkpoint_every=max(1, batches(train.checkpoint.every)),
            warmup=warmup,
            decay=decay,
            schedule=train.schedule,
        )

    def lr_ratio(self, batch: int) -> float:
        """Learning rate of a batch as a share of the peak.

        The schedule is asked for the batches that are done with this one, so that its end falls on the last batch.
        """
        return self.schedule.lr_ratio(batch + 1, self.total, self.warmup, self.decay)

    def validates(self, batches_done: int) -> bool:
        """Whether validation runs after so many batches."""
        return batches_done == self.total or batches_done % self.eval_every == 0

    def saves(self, batches_done: int) -> bool:
        """Whether a checkpoint is written after so many batches."""
        return batches_done == self.total or batches_done % self.checkpoint_every == 0


def _problem(key: str, message: str) -> RecipeError:
    return RecipeError([Problem(message, key=key)])
