"""Samples of prepared rows as readable text, and the two commands of `zoo data`."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from zoo.data.config import Mds, Source
from zoo.data.errors import DataError
from zoo.data.mds import document_starts, token_numbers
from zoo.data.packing import SPLITS
from zoo.data.prepared import PreparedData, RowStream
from zoo.data.preparing import prepare
from zoo.data.shards import make_ready
from zoo.data.stored import samples
from zoo.data.synthetic import IGNORED

NUMBERS_A_LINE = 16


def prepare_command(recipe: Any) -> str:
    """`zoo data prepare RECIPE`: make the rows (or find them), and say what they hold.

    Rows that are made now are decompressed too: others may train from the cache who may only read it.
    """
    prepared = prepare_for(recipe)
    if prepared.seconds:
        for stream in chain.from_iterable(prepared.streams.values()):
            if stream.ours:
                make_ready(stream.folder, stream.remedy)
    return prepared.report


def show_command(recipe: Any, n: int = 3, split: str = "train") -> str:
    """`zoo data show RECIPE`: make the rows (or find them), and show `n` of them."""
    prepared = prepare_for(recipe)
    return "\n\n".join([show_samples(prepared, n, split), *prepared.notes])


def prepare_for(recipe: Any) -> PreparedData:
    """Prepare the data of a recipe for its own model and seed."""
    model = recipe.model
    return prepare(recipe.data, max_seq_len=model.max_seq_len, vocab_size=model.vocab_size, seed=recipe.seed)


def show_samples(prepared: PreparedData, n: int = 3, split: str = "train") -> str:
    """Return `n` rows, evenly spread over the split's sources and rows, decoded; a line marks where a document begins.

    Raises DataError for a split without rows, and for remote shards that are not here yet.
    """
    if split not in SPLITS:
        raise DataError(f"split must be {' or '.join(SPLITS)}; found {split!r}")
    if not prepared.rows(split):
        raise DataError(f"there are no {split} rows to show")
    streams = prepared.streams[split]
    shown = []
    for i, stream in enumerate(streams):
        wanted = n * (i + 1) // len(streams) - n * i // len(streams)
        shown += [_show_row(prepared, stream, split, at, row) for at, row in _spread_rows(stream, wanted)]
    return "\n\n".join(shown)


def _spread_rows(stream: RowStream, n: int) -> Iterator[tuple[int, dict]]:
    return samples(stream, {int((i + 0.5) * stream.counts.rows / n) for i in range(n)})


def _show_row(prepared: PreparedData, stream: RowStream, split: str, at: int, sample: dict) -> str:
    tokens, labels, starts = _numbers(stream.source, sample)
    head = f"== {stream.source.kind} {split} row {at:,} of {stream.counts.rows:,}: {len(tokens):,} tokens"
    if labels is not None:
        answers = [f"  position {t}: predict {labels[t]}" for t in np.flatnonzero(labels != IGNORED)[:NUMBERS_A_LINE]]
        return "\n".join([head, _as_numbers(tokens), *answers])
    begun = [s for s in starts if s > 0]
    head += f", {len(begun)} new document{'' if len(begun) == 1 else 's'}"
    if prepared.tokenizer is None:
        return "\n".join([head, _as_numbers(tokens)])
    texts = [prepared.tokenizer.decode(part.tolist()) for part in np.split(tokens, begun)]
    return head + "\n" + "\n-- document begins --\n".join(texts)


def _numbers(source: Source, sample: dict) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    if isinstance(source, Mds):
        tokens = token_numbers(source, sample[source.tokens_column])
        labels = token_numbers(source, sample[source.labels_column]) if source.labels_column else None
        return tokens, labels, document_starts(source, sample, tokens)
    return sample["tokens"], sample.get("labels"), sample.get("starts", np.zeros(1, int))


def _as_numbers(tokens: np.ndarray) -> str:
    lines = [tokens[i : i + NUMBERS_A_LINE] for i in range(0, len(tokens), NUMBERS_A_LINE)]
    return "\n".join(" ".join(map(str, line)) for line in lines)
