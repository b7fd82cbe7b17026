"""Synthetic tasks: rows of numbers made by rule, with labels on the answers only (-100 elsewhere).

`labels[t]` is what the model must predict at position t.  Number 0 is filler and separator; the rest is task tokens.
"""

from collections.abc import Iterator

import numpy as np
import xxhash

from zoo.data.config import Synthetic
from zoo.data.errors import DataError

IGNORED = -100
CHUNK = 1024
GIVE_UP_AFTER = 50  # times as many rows drawn as wanted, before saying that there are not enough different ones


def mqar(rng: np.random.Generator, rows: int, length: int, source: Synthetic) -> tuple[np.ndarray, np.ndarray]:
    """Multi-query associative recall (zoology, arXiv 2312.04927): P pairs `k v`, then each key once more as a query.

    Returns (tokens, labels), both int64 [rows, length].  Keys are drawn from 1..V/2-1 and values from V/2..V-1, each
    without replacement.  The query of a pair stands at position 2P + 2(g - 1), counted from 0, with gaps g drawn
    without replacement from 1..(length - 2P)/2 with probability proportional to g^(power - 1); its label is the value.
    The smallest gap is the first place after the pairs, as in zoology's code, so that the largest gap lies in the row.
    """
    keys = _without_replacement(rng, rows, source.vocab_size // 2 - 1, source.pairs) + 1
    values = _values(rng, rows, source.pairs, source)
    return _recall(rng, length, source, np.stack((keys, values), 2), keys[:, :, None], values)


def compositional_mqar(
    rng: np.random.Generator, rows: int, length: int, source: Synthetic
) -> tuple[np.ndarray, np.ndarray]:
    """MQAR with keys of two tokens (zoology, 2026): P triples `a b v`, then each key `a b` once more as a query.

    The parts form a ring, a0 b0 a1 b1 ..., whose P edges are the keys, in an order drawn at random: each part belongs
    to exactly two keys, so that neither part alone tells the value. The label stands at the second part of a query.
    """
    half_ring = source.pairs // 2
    parts = _without_replacement(rng, rows, source.vocab_size // 2 - 1, source.pairs) + 1
    first, second = parts[:, :half_ring], parts[:, half_ring:]
    around = np.stack((np.stack((first, second), 2), np.stack((first, np.roll(second, -1, axis=1)), 2)), 1)
    keys = _shuffled(rng, around.reshape(rows, source.pairs, 2))
    values = _values(rng, rows, source.pairs, source)
    return _recall(rng, length, source, np.concatenate((keys, values[:, :, None]), 2), keys, values)


def forgetting_mqar(
    rng: np.random.Generator, rows: int, length: int, source: Synthetic
) -> tuple[np.ndarray, np.ndarray]:
    """MQAR with P // 2 of the keys written twice, the second time with another value, which is the label.

    The second writings come in random places after the first of their key (zoology, 2026).
    """
    again = source.pairs // 2
    keys = _without_replacement(rng, rows, source.vocab_size // 2 - 1, source.pairs) + 1
    values = _values(rng, rows, source.pairs + again, source)
    written = np.concatenate((keys, keys[:, :again]), 1)
    # Random times, of which a key written twice takes the earlier for its first writing.
    time = rng.random(written.shape)
    early, late = (
        np.minimum(time[:, :again], time[:, source.pairs :]),
        np.maximum(time[:, :again], time[:, source.pairs :]),
    )
    time[:, :again], time[:, source.pairs :] = early, late
    order = np.argsort(time, axis=1)[:, :, None]
    pairs = np.take_along_axis(np.stack((written, values), 2), order, axis=1)
    right = np.concatenate((values[:, source.pairs :], values[:, again : source.pairs]), 1)
    return _recall(rng, length, source, pairs, keys[:, :, None], right)


def _values(rng: np.random.Generator, rows: int, count: int, source: Synthetic) -> np.ndarray:
    half = source.vocab_size // 2
    return _without_replacement(rng, rows, source.vocab_size - half, count) + half


def _shuffled(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """x [rows, items, ...] with the items of each row in an order of its own."""
    order = np.argsort(rng.random(x.shape[:2]), axis=1)
    return np.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1)


def _recall(
    rng: np.random.Generator,
    length: int,
    source: Synthetic,
    written: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that begin with `written` [rows, n, w] and ask for `values` [rows, P] by `keys` [rows, P, 1 or 2]."""
    rows, start = len(written), written.shape[1] * written.shape[2]
    places = (length - start) // 2
    # Gumbel noise on the log-weights, sorted, is sampling without replacement in the order of the draws.
    noisy = (source.power - 1) * np.log(np.arange(1, places + 1)) + rng.gumbel(size=(rows, places))
    positions = start + 2 * np.argsort(-noisy, axis=1)[:, : source.pairs]
    tokens = np.zeros((rows, length), np.int64)
    tokens[:, :start] = written.reshape(rows, start)
    for part in range(keys.shape[2]):
        np.put_along_axis(tokens, positions + part, keys[:, :, part], axis=1)
    labels = np.full((rows, length), IGNORED)
    np.put_along_axis(labels, positions + keys.shape[2] - 1, values, axis=1)
    if source.filler == "random":
        _fill(rng, tokens, tokens == 0, keys.reshape(rows, -1), source.vocab_size)
    return tokens, labels


def repeat(rng: np.random.Generator, rows: int, length: int, source: Synthetic) -> tuple[np.ndarray, np.ndarray]:
    """Copy (r tokens, separator 0, the same r tokens) and induction (r tokens, filler, the same r tokens).

    Returns (tokens, labels), both int64 [rows, length].  Labels are the tokens of the second half: for copy all r of
    them, the first predicted at the separator; for induction r - 1, since nothing announces the first.
    """
    span, between = source.resolved_span(length), 1 if source.task == "copy" else source.gap
    tokens = np.zeros((rows, length), np.int64)
    sequence = rng.integers(1, source.vocab_size, (rows, span))
    second = span + between
    tokens[:, :span], tokens[:, second : second + span] = sequence, sequence
    labels = np.full((rows, length), IGNORED)
    first = second - 1 if source.task == "copy" else second
    labels[:, first : second + span - 1] = tokens[:, first + 1 : second + span]
    if source.task == "induction" and source.filler == "random":
        gap = np.zeros((rows, length), bool)
        gap[:, span:second] = True
        _fill(rng, tokens, gap, sequence, source.vocab_size)
    return tokens, labels


def make_rows(source: Synthetic, length: int, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (split, tokens, labels) until both splits are full; equal rows are always in one split.

    Raises DataError if the task has too few different rows for that.
    """
    make = MAKERS[source.task]
    wanted = {"train": source.rows, "validation": source.validation_rows}
    missing = dict(wanted)
    for chunk in range(GIVE_UP_AFTER * (1 + sum(wanted.values()) // CHUNK)):
        tokens, labels = make(np.random.default_rng([seed, chunk]), CHUNK, length, source)
        for row, label in zip(tokens, labels, strict=True):
            split = split_of(row, source)
            if missing[split]:
                missing[split] -= 1
                yield split, row, label
        if not any(missing.values()):
            return
    short = " and ".join(f"{n:,} of {wanted[split]:,} {split} rows" for split, n in missing.items() if n)
    raise DataError(
        f"source {source.task}: too few different rows exist ({short} missing); raise vocab_size, span or pairs"
    )


MAKERS = {
    "mqar": mqar,
    "compositional_mqar": compositional_mqar,
    "forgetting_mqar": forgetting_mqar,
    "copy": repeat,
    "induction": repeat,
}


def split_of(row: np.ndarray, source: Synthetic) -> str:
    """The split of a row, train or validation, by its content: equal rows are always in one split."""
    threshold = int(source.validation_rows / (source.rows + source.validation_rows) * 2**64)
    return "validation" if xxhash.xxh64_intdigest(row.tobytes()) < threshold else "train"


def _without_replacement(rng: np.random.Generator, rows: int, n: int, k: int) -> np.ndarray:
    return np.stack([rng.choice(n, k, replace=False) for _ in range(rows)])


def _fill(rng: np.random.Generator, tokens: np.ndarray, where: np.ndarray, taken: np.ndarray, vocab_size: int) -> None:
    """Fill places with tokens from 1..V-1 that are not among the row's `taken`: others would have two answers."""
    for row, places, mine in zip(tokens, where, taken, strict=True):
        allowed = np.setdiff1d(np.arange(1, vocab_size), mine)
        row[places] = rng.choice(allowed, places.sum())
