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
    pairs, half = source.pairs, source.vocab_size // 2
    keys = _without_replacement(rng, rows, half - 1, pairs) + 1
    values = _without_replacement(rng, rows, source.vocab_size - half, pairs) + half
    places = (length - 2 * pairs) // 2
    # Gumbel noise on the log-weights, sorted, is sampling without replacement in the order of the draws.
    noisy = (source.power - 1) * np.log(np.arange(1, places + 1)) + rng.gumbel(size=(rows, places))
    positions = 2 * pairs + 2 * np.argsort(-noisy, axis=1)[:, :pairs]
    tokens = np.zeros((rows, length), np.int64)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    np.put_along_axis(tokens, positions, keys, axis=1)
    labels = np.full((rows, length), IGNORED)
    np.put_along_axis(labels, positions, values, axis=1)
    if source.filler == "random":
        _fill(rng, tokens, tokens == 0, keys, source.vocab_size)
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
    make = mqar if source.task == "mqar" else repeat
    wanted = {"train": source.rows, "validation": source.validation_rows}
    threshold = int(source.validation_rows / (source.rows + source.validation_rows) * 2**64)
    missing = dict(wanted)
    for chunk in range(GIVE_UP_AFTER * (1 + sum(wanted.values()) // CHUNK)):
        tokens, labels = make(np.random.default_rng([seed, chunk]), CHUNK, length, source)
        for row, label in zip(tokens, labels, strict=True):
            split = "validation" if xxhash.xxh64_intdigest(row.tobytes()) < threshold else "train"
            if missing[split]:
                missing[split] -= 1
                yield split, row, label
        if not any(missing.values()):
            return
    short = " and ".join(f"{n:,} of {wanted[split]:,} {split} rows" for split, n in missing.items() if n)
    raise DataError(
        f"source {source.task}: too few different rows exist ({short} missing); raise vocab_size, span or pairs"
    )


def _without_replacement(rng: np.random.Generator, rows: int, n: int, k: int) -> np.ndarray:
    return np.stack([rng.choice(n, k, replace=False) for _ in range(rows)])


def _fill(rng: np.random.Generator, tokens: np.ndarray, where: np.ndarray, taken: np.ndarray, vocab_size: int) -> None:
    """Fill places with tokens from 1..V-1 that are not among the row's `taken`: others would have two answers."""
    for row, places, mine in zip(tokens, where, taken, strict=True):
        allowed = np.setdiff1d(np.arange(1, vocab_size), mine)
        row[places] = rng.choice(allowed, places.sum())
