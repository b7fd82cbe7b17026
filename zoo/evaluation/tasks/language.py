"""Loss on held-out text: by position at and beyond the training length, and by document."""

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np

from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.task import IGNORED, Labelled, ModelFacts, Predicted, Row, TaskRows
from zoo.evaluation.tasks.language_config import ROWS, LossByPosition, Perplexity

DOCUMENTS = 100  # that eval.json lists one by one
BUCKETS = 16


class LossByPositionRows(TaskRows):
    """Rows of held-out text, scored in buckets of position."""

    task: LossByPosition

    def examples(self, model: ModelFacts) -> list[Labelled]:
        lengths = self.task.lengths or (model.max_len,)
        longest = max(lengths)
        if model.longest is not None and longest > model.longest:
            raise EvaluationError(f"lengths: {longest} tokens, and the model takes {model.longest}")
        text = _held_out(model)
        rows = list(islice(_windows(text.stream(), longest + 1), self.task.rows or ROWS))
        if not rows:
            raise EvaluationError(
                f"the held-out text has fewer than {longest + 1} tokens; give more, or a shorter length"
            )
        bucket = self.task.bucket or max(1, longest // BUCKETS)
        return [
            Labelled(
                row[:n],
                row[1 : n + 1],
                facets={"length": n, "bucket": bucket, "bytes": _bytes(text, row[1 : n + 1])},
                cluster=f"row {i}",
            )
            for n in sorted(lengths)
            for i, row in enumerate(rows)
        ]

    def score(self, example: Labelled, answer: Predicted) -> Row:
        n, bucket = float(len(answer.nats)), example.facets["bucket"]
        length = example.facets["length"]
        row = _row(answer.nats, example.facets["bytes"])
        row.by.append(("length", length, "nats", row.values["nats"], n))
        for start in range(0, len(answer.nats), bucket):
            part = answer.nats[start : start + bucket]
            key = f"{length}: {start + 1}-{start + len(part)}"
            row.by.append(("position", key, "nats", float(part.mean()), float(len(part))))
        return row


class PerplexityRows(TaskRows):
    """The held-out split in the rows of training."""

    task: Perplexity

    def examples(self, model: ModelFacts) -> list[Labelled]:
        text = _held_out(model)
        found: list[Labelled] = []
        document, last = -1, None  # last: the last label of the row before, None if that row ends a document
        for row in text.rows():
            # A row that goes on begins with the last label of the row before; any other one begins a document.
            document += last is None or last != row.inputs[0]
            facets = {"bytes": _bytes(text, row.labels), "first": document, "bucket": self.task.bucket}
            document, last = document + int((row.starts > 0).sum()), None if row.ends else row.labels[-1]
            if (row.labels != IGNORED).any():  # rows with labels of their own may have none
                found.append(Labelled(row.inputs, row.labels, starts=row.starts, facets=facets))
            if len(found) == self.task.rows:
                break
        return found

    def score(self, example: Labelled, answer: Predicted) -> Row:
        places = np.flatnonzero(example.labels != IGNORED)
        row = _row(answer.nats, example.facets["bytes"])
        bucket = example.facets["bucket"] or max(1, len(example.tokens) // BUCKETS)
        for index in np.unique(places // bucket):
            part = answer.nats[places // bucket == index]
            key = f"{index * bucket + 1}-{(index + 1) * bucket}"
            row.by.append(("position", key, "nats", float(part.mean()), float(len(part))))
        row.by += self._by_document(example, answer, places)
        return row

    def _by_document(self, example: Labelled, answer: Predicted, places: np.ndarray) -> Iterator[tuple]:
        first = example.facets["first"]
        assert example.starts is not None
        begun = np.searchsorted(example.starts[example.starts > 0], places, side="right")
        for index in np.unique(begun):
            number = first + int(index)
            if number < DOCUMENTS:
                part = answer.nats[begun == index]
                yield "document", number, "nats", float(part.mean()), float(len(part))


def _row(nats: np.ndarray, size: float | None) -> Row:
    """size: bytes of text that the scored tokens stand for; None if they are plain numbers."""
    n = float(len(nats))
    row = Row({"nats": float(nats.mean())}, {"nats": n})
    if size:
        row.values["bits_per_byte"] = float(nats.sum()) / math.log(2) / size
        row.weights["bits_per_byte"] = size
    return row


def _bytes(text, labels: np.ndarray) -> float | None:
    """Bytes that the labels of a row stand for, those that are not scored left out."""
    sizes = text.token_bytes
    return None if sizes is None else float(sizes[labels[labels != IGNORED]].sum())


def _held_out(model: ModelFacts):
    if model.held_out is None:
        raise EvaluationError(
            f"{model.name} has no held-out text, which the recipe.yaml of a run names; name some with --data FILE "
            "(a recipe's data section)"
        )
    return model.held_out


def _windows(stream: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """The tokens of a stream in rows of `length`, the last of which is the first of the next; a short end is left."""
    kept = np.zeros(0, np.int64)
    for part in stream:
        kept = np.concatenate((kept, part))
        while len(kept) >= length:
            yield kept[:length]
            kept = kept[length - 1 :]
