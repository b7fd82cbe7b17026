"""Rows to batches: which rows run together, and to what shape they are padded.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Of a batch, padding included, where memory allows it. 65,536 tokens keep a GPU busy; larger batches would hold rows of
# more different lengths, and so more padding.
TOKENS_GPU, TOKENS_CPU = 1 << 16, 1 << 13
# Lengths are rounded up to a multiple of a quarter of the power of two below them, and of 16: Triton compiles a kernel
# again for a length that 16 does not divide.
STEPS, LEAST_STEP = 4, 16


@dataclass(frozen=True)
class Batch:
    """indices: of the rows that run together.  rows, length: the shape they are padded to."""

    indices: tuple[int, ...]
    rows: int
    length: int


def by_length(
    lengths: Sequence[int], rows_at: Callable[[int], int], *, few_shapes: bool, longest: int | None = None
) -> Callable[[int], Batch]:
    """What cuts rows into batches by their lengths, the longest first, so that memory fails early.

    rows_at: how many rows of a length run together, asked for each batch; at least one row does.  The result is called
    with how many rows are in batches already, and returns the next batch.
    few_shapes: round lengths up by `padded_length`, and numbers of rows to powers of two, with rows of padding where
    too few are left. On a GPU, cuDNN makes a plan for each new shape of attention. By an estimate this takes 0.25 s, in
    which an H200 computes about 100,000 tokens of a model of 340M parameters. The 12 common-sense tasks have 20 shapes
    this way, and 87 with the lengths as they are. A CPU makes no plans, and pays for every token of padding.
    longest: no length is rounded to more.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])

    def cut(start: int) -> Batch:
        length = lengths[order[start]]
        if few_shapes:
            length = padded_length(length, longest)
        rows = max(1, rows_at(length))
        if few_shapes:
            rows = floor_power(rows)
        indices = tuple(order[start : start + rows])
        return Batch(indices, min(rows, _ceil_power(len(indices))) if few_shapes else len(indices), length)

    return cut


def padded_length(length: int, longest: int | None = None) -> int:
    """The length that a row of `length` tokens is padded to, at most `longest` if the row itself is not longer.

    Powers of two stay as they are, so no row is padded beyond one: a limit of a model is mostly a power of two, and
    rotary frequencies of some models of transformers change beyond it.
    """
    step = max(LEAST_STEP, _ceil_power(length) // 2 // STEPS)
    rounded = -(-length // step) * step
    return rounded if longest is None else max(length, min(rounded, longest))


def floor_power(n: int) -> int:
    """The largest power of two that is at most n, an integer of at least 1."""
    return 1 << (n.bit_length() - 1)


def _ceil_power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
