"""Recall under teacher forcing: MQAR and its two variants, copy, induction. Rows of numbers, made by rule."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from zoo.data.config import Synthetic
from zoo.data.synthetic import CHUNK, MAKERS, split_of
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.task import IGNORED, Labelled, ModelFacts, Predicted, Row, TaskRows
from zoo.evaluation.tasks.recall_config import ROWS, ForgettingMqar, Induction, Pairs, Recall, Repeat

TEST_STREAM = 0x7E57  # keeps the rows of an evaluation apart from those that a training with the same seed draws


class RecallRows(TaskRows):
    """Rows of each length and setting, and the share of the answers that are right, by distance."""

    task: Recall

    def sources(self, model: ModelFacts) -> Iterator[tuple[int, Synthetic]]:
        """(tokens of a row, what they are made by) of each setting."""
        trained = _trained_on(model, self.task.task)
        vocab_size = self.task.vocab_size or (trained.vocab_size if trained else min(8192, model.vocab_size))
        default = trained.length if trained and trained.length else _even(min(256, model.max_len, vocab_size - 1))
        lengths = self.task.lengths or (default,)
        for length in lengths:
            if length > model.max_len:
                raise EvaluationError(f"lengths: {length} tokens, and the model takes {model.max_len}")
            for settings in self.settings(trained, length):
                yield length, _source(self.task.task, vocab_size, length, settings, model.vocab_size)

    def settings(self, trained: Synthetic | None, length: int) -> Iterator[dict[str, Any]]:
        """Further fields of `Synthetic`, for each set of rows of a length."""
        raise NotImplementedError

    def examples(self, model: ModelFacts) -> list[Labelled]:
        trained = _trained_on(model, self.task.task)
        found = []
        for length, source in self.sources(model):
            rows = islice(_rows(source, length, self.task.seed, trained), self.task.rows or ROWS)
            found += [Labelled(t, y, facets=self.row_facets(source, length)) for t, y in rows]
        return found

    def row_facets(self, source: Synthetic, length: int) -> dict[str, Any]:
        return {"length": length, "vocab_size": source.vocab_size}

    def score(self, example: Labelled, answer: Predicted) -> Row:
        places = np.flatnonzero(example.labels != IGNORED)
        right = answer.tokens == example.labels[places]
        n = float(len(places))
        values = {"accuracy": right.mean(), "rows_right": float(right.all()), "nats": answer.nats.mean()}
        row = Row({name: float(value) for name, value in values.items()}, {"accuracy": n, "nats": n})
        for facet in ("length", "pairs"):
            if facet in example.facets:
                row.by.append((facet, example.facets[facet], "accuracy", row.values["accuracy"], n))
        distances = self.distances(example, places)
        for bucket in np.unique(_buckets(distances)):
            mine = _buckets(distances) == bucket
            row.by.append(("distance", _bucket_name(bucket), "accuracy", float(right[mine].mean()), float(mine.sum())))
        return row

    def distances(self, example: Labelled, places: np.ndarray) -> np.ndarray:
        """How many tokens before the place of each label the answer stands."""
        raise NotImplementedError

    def chance(self, examples: Sequence[Labelled]) -> dict[str, float]:
        return {"accuracy": float(np.mean([1 / example.facets["vocab_size"] for example in examples]))}


class PairsRows(RecallRows):
    """Pairs of key and value, then the keys as queries."""

    task: Pairs

    def settings(self, trained, length):
        fits = [pairs for pairs in (4, 8, 16, 32, 64) if 5 * pairs <= length]
        if not (self.task.pairs or trained or fits):
            raise EvaluationError(
                f"lengths: 4 pairs need rows of 20 tokens; found {length}; longer rows, or fewer pairs"
            )
        for pairs in self.task.pairs or ((trained.pairs,) if trained else fits):
            yield {
                "pairs": pairs,
                "power": self.task.power or (trained.power if trained else 0.01),
                "filler": self.task.filler or (trained.filler if trained else "zeros"),
            }

    def row_facets(self, source, length):
        return super().row_facets(source, length) | {"pairs": source.pairs, "written": source.written}

    def distances(self, example, places):
        """To the value: it stands in the first part, behind the key."""
        written = example.tokens[: example.facets["written"]]
        where = {int(token): i for i, token in enumerate(written)}
        return np.array([place - where[int(example.labels[place])] for place in places])


class ForgettingMqarRows(PairsRows):
    """As `PairsRows`, scored by whether a key was written once or twice."""

    task: ForgettingMqar

    def score(self, example, answer):
        row = super().score(example, answer)
        places = np.flatnonzero(example.labels != IGNORED)
        right = answer.tokens == example.labels[places]
        written = example.tokens[: example.facets["written"] : 2]
        twice = np.array([(written == example.tokens[place]).sum() == 2 for place in places])
        for name, mine in (("once", ~twice), ("twice", twice)):
            if mine.any():
                row.by.append(("written", name, "accuracy", float(right[mine].mean()), float(mine.sum())))
        return row


class RepeatRows(RecallRows):
    """A sequence that comes twice."""

    task: Repeat

    def settings(self, trained, length):
        yield {"span": self.task.span or (trained.span if trained else None)}

    def distances(self, example, places):
        """To the token's first occurrence: the repetition is a shift by a fixed number of places."""
        shift = example.facets["shift"]
        return np.full(len(places), shift - 1)

    def row_facets(self, source, length):
        between = 1 if source.task == "copy" else source.gap
        return super().row_facets(source, length) | {"shift": source.resolved_span(length) + between}


class InductionRows(RepeatRows):
    """A sequence that comes again after a gap."""

    task: Induction

    def settings(self, trained, length):
        for gap in self.task.gaps or ((trained.gap,) if trained else (0,)):
            if gap + 4 > length:
                raise EvaluationError(f"gaps: {gap} tokens do not fit into a row of {length}")
            yield {"span": self.task.span or (trained.span if trained else None), "gap": gap}


def _trained_on(model: ModelFacts, task: str) -> Synthetic | None:
    """The synthetic source of this task that the model was trained with."""
    if model.data is None:
        return None
    sources = [*(getattr(model.data, "sources", None) or ()), getattr(model.data, "source", None)]
    return next((s for s in sources if isinstance(s, Synthetic) and s.task == task), None)


def _even(length: int) -> int:
    return length // 2 * 2


def _source(task: str, vocab_size: int, length: int, settings: dict[str, Any], known: int) -> Synthetic:
    source = Synthetic(kind="synthetic", task=task, vocab_size=vocab_size, **settings)
    for (field, *_), message in source.problems(seq_len=length, vocab_size=known):
        raise EvaluationError(f"{field}: {message}")
    return source


def _rows(source: Synthetic, length: int, seed: int, trained: Synthetic | None) -> Iterator[tuple]:
    """Rows without end; of a model's own task none that could have been in its training."""
    chunk = 0
    while True:
        rng = np.random.default_rng([seed, TEST_STREAM, length, source.pairs, chunk])
        for tokens, labels in zip(*MAKERS[source.task](rng, CHUNK, length, source), strict=True):
            if trained is None or split_of(tokens, trained) == "validation":
                yield tokens, labels
        chunk += 1


def _buckets(distances: np.ndarray) -> np.ndarray:
    """The power of two above each distance, as its exponent: 1 -> 0, 2 -> 1, 3..4 -> 2, 5..8 -> 3."""
    return np.ceil(np.log2(np.maximum(distances, 1))).astype(int)


def _bucket_name(exponent: int) -> str:
    low, high = (1 << exponent - 1) + 1 if exponent else 1, 1 << exponent
    return str(high) if low >= high else f"{low}-{high}"
