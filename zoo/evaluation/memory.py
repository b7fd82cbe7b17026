"""How much memory a batch may take, and what follows if it runs out: smaller batches, and in the end a message."""

import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch

from zoo.errors import ZooError
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.subject import Subject
from zoo.memory import free_bytes, ran_out

# Of the memory that is free when a task begins, for caches, activations and logits. The other half is for what is not
# counted: tensors of a kernel while it runs, the copy of a cache's rows, gaps between tensors.
SHARE = 0.5
LOGITS_SHARE = 0.25  # of that, for logits
LOGIT_BYTES = 12  # of a logit: in the dtype of the model, in float32, and once more inside logsumexp
LEAST_PLACES = 64  # whose logits are computed at a time
HALVINGS = 40  # more than a number of rows has

Say = Callable[[str], object]
Made = TypeVar("Made")


class Cut(Protocol):
    """A batch: which items run together, in how many rows, and of how many tokens."""

    @property
    def indices(self) -> Sequence[int]: ...
    @property
    def rows(self) -> int: ...
    @property
    def length(self) -> int: ...


AnyCut = TypeVar("AnyCut", bound=Cut)


class Budget:
    """The memory that the batches of one task may take.

    n_bytes: of a batch; None where the system does not say what is free, so that only other bounds of a batch count.
    say: called with a line when memory ran out and smaller batches follow.
    repeats: whether a call that ran out of memory may be made again, as `Subject.repeats`.
    """

    def __init__(self, n_bytes: int | None, say: Say = warnings.warn, repeats: bool = True):
        self.n_bytes, self.say, self._repeats = n_bytes, say, repeats
        self._divisor, self._least_places = 1, False  # how much smaller batches are since memory ran out

    @classmethod
    def of(cls, subject: Subject, say: Say = warnings.warn) -> "Budget":
        """SHARE of the memory that is free now on the device of a subject."""
        free = free_bytes(subject.device)
        return cls(None if free is None else int(SHARE * free), say, subject.repeats)

    def rows(self, row_bytes: int, most: int, fixed_bytes: int = 0) -> int:
        """How many rows of row_bytes each fit next to fixed_bytes: up to `most`, and 0 if not even one fits."""
        if self.n_bytes is not None:
            most = min(most, max(0, self.n_bytes - fixed_bytes) // max(1, row_bytes))
        return most // self._divisor

    def places(self, vocab_size: int) -> int:
        """At how many places logits may be computed at a time, at least LEAST_PLACES."""
        if self._least_places:
            return LEAST_PLACES
        if self.n_bytes is None:
            return sys.maxsize
        return max(LEAST_PLACES, int(LOGITS_SHARE * self.n_bytes) // (LOGIT_BYTES * vocab_size) // self._divisor)

    def in_batches(
        self, n: int, cut: Callable[[int], AnyCut], run: Callable[[AnyCut], Made]
    ) -> Iterator[tuple[AnyCut, Made]]:
        """Run n items in batches: yield each batch and what `run` made of it.

        cut: makes the batch that begins with an item, in as many rows as this budget allows.
        A batch that runs out of memory is cut again with fewer rows, and those after it have fewer rows too. Raises
        EvaluationError if the smallest batch runs out of memory.
        """
        start = 0
        while start < n:
            batch = cut(start)
            made: list[Made] = []
            try:
                made.append(run(batch))
            except (RuntimeError, MemoryError, ZooError) as error:
                if not (self._repeats and ran_out(error)):
                    raise
            if made:
                yield batch, made[0]
                start += len(batch.indices)
            else:  # outside the handler: the error holds the tensors of the call that failed
                self._shrink(batch, cut, start)

    def _shrink(self, batch: AnyCut, cut: Callable[[int], AnyCut], start: int) -> None:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        tried, before = f"out of memory with {batch.rows:,} x {batch.length:,} tokens", self._divisor
        for _ in range(HALVINGS):  # the first halvings change nothing where fewer items are left than fit
            self._divisor *= 2
            smaller = cut(start)
            if smaller.rows < batch.rows:
                self.say(f"{tried}: smaller batches from here on")
                return
        self._divisor = before
        if self._least_places:
            raise EvaluationError(f"{tried}; shorter rows or a narrower dtype need less")
        self._least_places = True
        self.say(f"{tried}: the logits are computed in smaller parts from here on")
