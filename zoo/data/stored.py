"""Prepared rows without a loader: in stored order, one by one, for samples and for evaluation.  Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.data.config import Mds
from zoo.data.errors import DataError
from zoo.data.mds import check_row, document_starts, rows_of, token_numbers
from zoo.data.prepared import PreparedData, RowStream
from zoo.data.shards import make_ready, read_index
from zoo.data.synthetic import IGNORED


@dataclass(frozen=True)
class StoredRow:
    """A row as the model reads it, without padding.

    inputs, labels: int64 [T].  starts: where documents begin.  ends: whether its last input ends a document, so that
    its last label and the next row, if that goes on, are of another.
    """

    inputs: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    ends: bool = False


def stored_rows(prepared: PreparedData, split: str) -> Iterator[StoredRow]:
    """The rows of a split, source by source.  Raises DataError for damaged shards, and for remote ones."""
    for stream in prepared.streams[split]:
        for _, sample in samples(stream):
            inputs, labels, starts = row_parts(stream, sample, prepared.seq_len, prepared.vocab_size)
            yield StoredRow(inputs, labels, starts[starts < len(inputs)], bool((starts == len(inputs)).any()))


def samples(stream: RowStream, wanted: set[int] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, columns) of the stored rows of a stream, or of the wanted ones."""
    if stream.remote:
        raise DataError(
            f"source mds: {stream.remote}: rows of remote shards are fetched by training, and cannot be shown"
        )
    make_ready(stream.folder, stream.remedy)
    first = 0
    for shard in read_index(stream.folder):
        here = range(first, first + shard["samples"])
        chosen = list(here) if wanted is None else sorted(wanted.intersection(here))
        yield from zip(chosen, rows_of(stream.folder, shard, [at - first for at in chosen]), strict=True)
        first += shard["samples"]


def row_parts(
    stream: RowStream, sample: dict, seq_len: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inputs, labels and document starts of a stored row; starts may point one past the inputs."""
    source = stream.source
    if not isinstance(source, Mds):
        tokens = sample["tokens"].astype(np.int64)
        if "labels" in sample:
            return tokens, sample["labels"].astype(np.int64), np.zeros(1, np.int64)
        return tokens[:-1], tokens[1:], sample["starts"].astype(np.int64)
    tokens = token_numbers(source, sample[source.tokens_column])
    check_row(source, tokens, vocab_size)
    starts = document_starts(source, sample, tokens)
    if source.labels_column:
        return tokens[:seq_len], token_numbers(source, sample[source.labels_column])[:seq_len], starts
    targets = np.append(tokens[1:], IGNORED) if len(tokens) == seq_len else tokens[1:]
    return tokens[: len(targets)][:seq_len], targets[:seq_len], starts
