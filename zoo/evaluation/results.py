"""What an evaluation found: one `Result` a task, and eval.json, in which a run folder keeps them."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from zoo.errors import ZooError, first_mistake
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.statistics import bootstrap
from zoo.evaluation.task import Example, Row, Task
from zoo.files import present, read_json, write_sealed_json

FORMAT = 1
FILE = "eval.json"


@dataclass(frozen=True)
class Result:
    """The scores of one task.

    metrics: name -> value, stderr, low, high, rows, chance (None if there is none), better.
    by: facet -> key -> metric -> value, stderr, low, high, rows.
    """

    label: str
    task: str
    settings: dict[str, Any]
    version: int
    seed: int
    rows: int
    examples_hash: str
    metrics: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    by: dict[str, dict[str, dict[str, dict[str, Any]]]] = field(default_factory=dict)
    truncated: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    time_s: float = 0.0

    def __repr__(self) -> str:
        name, numbers = self.primary
        interval = "" if numbers.get("low") is None else f" ({numbers['low']:.4g} to {numbers['high']:.4g})"
        return f"<Result {self.label}: {name} {numbers['value']:.4g}{interval}, {self.rows:,} rows>"

    @property
    def primary(self) -> tuple[str, dict[str, Any]]:
        """(name, numbers) of the primary metric: the first, as in `Task.metrics`."""
        return next(iter(self.metrics.items()))

    def is_share(self, metric: str) -> bool:
        """Whether a metric is a share of 1, which is shown as a percentage."""
        return bool(self.metrics[metric].get("share"))


Number = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class _Numbers:
    """What tables and plots read of a metric."""

    value: Number
    stderr: Number | None
    low: Number | None
    high: Number | None
    rows: Annotated[int, Field(ge=0, le=2**63)]
    chance: Number | None = None


_RESULT, _NUMBERS = TypeAdapter(Result), TypeAdapter(_Numbers)


def summarise(task: Task, examples: Sequence[Example], rows: Sequence[Row]) -> tuple[dict, dict]:
    """(metrics, by) of a `Result` from the numbers of each row."""
    clusters = [example.cluster for example in examples]
    chance = task.chance(examples)
    metrics = {}
    for metric in task.metrics:
        found = [(row.values[metric.name], row.weights.get(metric.name, 1.0), cluster)
                 for row, cluster in zip(rows, clusters, strict=True) if metric.name in row.values]  # fmt: skip
        if found:
            values: dict[str, Any] = _estimate(found, metric.percent)
            metrics[metric.name] = values | {
                "chance": chance.get(metric.name),
                "better": metric.better,
                "share": metric.percent,
            }
    return metrics, _breakdowns(rows, clusters, {metric.name for metric in task.metrics if metric.percent})


def _breakdowns(rows: Sequence[Row], clusters: Sequence[str | None], shares: set[str]) -> dict:
    found: dict[tuple[str, str, str], list[tuple[float, float, object]]] = {}
    order: dict[str, dict[str, Any]] = {}
    for i, (row, cluster) in enumerate(zip(rows, clusters, strict=True)):
        for facet, key, metric, value, weight in row.by:
            # Several places of one row are not independent: the row is their cluster.
            found.setdefault((facet, str(key), metric), []).append((value, weight, cluster or f"row {i}"))
            order.setdefault(facet, {})[str(key)] = key
    by: dict[str, dict[str, dict[str, dict]]] = {}
    for facet, keys in order.items():
        for name in sorted(keys, key=lambda name: _sort_key(keys[name])):
            for (f, k, metric), triples in found.items():
                if (f, k) == (facet, name):
                    by.setdefault(facet, {}).setdefault(name, {})[metric] = _estimate(triples, metric in shares)
    return by


def _estimate(triples: Sequence[tuple[float, float, object]], share: bool) -> dict[str, Any]:
    """The mean of (value, weight, cluster) with its interval, as `Result` holds it."""
    values, weights, clusters = zip(*triples, strict=True)
    return bootstrap(values, weights, clusters, share).as_dict()


def _sort_key(key: Any) -> tuple:
    return (0, key, "") if isinstance(key, int | float) else (1, 0, str(key))


def hash_examples(examples: Iterable[Example]) -> str:
    """SHA-256 of the examples, the first 16 digits: equal for equal rows on every machine."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(asdict(example), sort_keys=True, default=_plain).encode())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value)


class ResultFile:
    """eval.json of a run folder: the latest result of each task, written after each, so that a stop loses one task."""

    def __init__(self, path: Path):
        self.path = path
        self._results: dict[str, Result] = {}
        if present(path):
            self._results = {result.label: result for result in read_results(path)}

    def find(self, task: Task, model: dict[str, Any]) -> Result | None:
        """The result of this task for these weights in this dtype, if it is there and of the task's version."""
        found = self.find_label(task.label, model)
        return found if found is not None and found.version == task.version else None

    def find_label(self, label: str, model: dict[str, Any]) -> Result | None:
        """The result of this label for this model, this tokenizer and this dtype, if it is there."""
        found = self._results.get(label)
        if found is None or not model["digest"]:
            return None
        same = all(found.model.get(key) == model[key] for key in ("digest", "dtype", "tokenizer", "held_out"))
        config = model.get("config")  # results of earlier versions have none
        return found if same and found.model.get("config", config) == config else None

    def add(self, result: Result) -> None:
        """Keep a result.  Raises EvaluationError for one that is not finite, which the file, as JSON, cannot hold."""
        for name, numbers in (*result.metrics.items(), *_leaves(result.by)):
            if not math.isfinite(numbers["value"]):
                raise EvaluationError(
                    f"{result.label}: {name} is {numbers['value']}, because what the model gives in "
                    f"{result.model.get('dtype', 'this dtype')} is not finite; use --dtype fp32, and if that gives the "
                    "same, the weights are broken: train with a lower learning rate"
                )
        self._results[result.label] = result
        write_sealed_json(self.path, {"format": FORMAT, "results": [asdict(each) for each in self._results.values()]})


def read_results(path: Path) -> list[Result]:
    """The results of an eval.json.  Raises ZooError that names the file if it is damaged or of another version."""
    content = read_json(path)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT or not isinstance(content.get("results"), list):
        raise ZooError(f"{path}: not an eval.json of format {FORMAT}; found {found!r}. Remove it to evaluate again")
    try:
        return [_read_result(each) for each in content["results"]]
    except ValidationError as error:
        raise ZooError(f"{path}: damaged: {first_mistake(error)}. Remove it to evaluate again") from error


def _read_result(value: Any) -> Result:
    result = _RESULT.validate_json(json.dumps(value), strict=True)
    for _, numbers in (*result.metrics.items(), *_leaves(result.by)):
        _NUMBERS.validate_json(json.dumps(numbers), strict=True)
    return result


def _leaves(by: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(metric, numbers) of all breakdowns."""
    return (pair for keys in by.values() for metrics in keys.values() for pair in metrics.items())
