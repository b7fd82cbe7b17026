"""Runs that differ only by seed, as one column: means over the seeds, with 95% intervals. No torch."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.files import present
from zoo.report.columns import Column

MEANS = ("batches", "tokens", "time_s", "flops", "tokens_per_s")


def grouped(columns: Sequence[Column]) -> list[Column]:
    """The columns, with runs of one recipe and different seeds in one: the first of them, the others in `repeats`.

    Runs of one seed, such as the same folder twice, stay columns of their own.
    """
    groups: dict[Any, list[Column]] = {}
    for index, column in enumerate(columns):
        groups.setdefault(_same(column) or index, []).append(column)
    found: list[Column] = []
    for group in groups.values():
        different = len({column.known_recipe.seed for column in group}) == len(group) if len(group) > 1 else False
        found += [_together(group)] if different else group
    names = Counter(column.label for column in found)
    return [
        column if names[column.label] == 1 or not column.repeats else replace(column, label=_by_folder(column))
        for column in found
    ]


def _same(column: Column) -> str | None:
    """Equal for runs that differ only by seed; None for what is no run."""
    if column.run is None or column.recipe is None or column.error:
        return None
    try:
        content = _content(column.known_run.data) if present(column.known_run.data) else None
    except (OSError, ZooError):  # damaged; the column says so when it is read
        return None
    return json.dumps([column.known_recipe.model_dump(mode="json", exclude={"seed"}), content], sort_keys=True)


def _content(path: Path) -> list[str | None]:
    """Hashes of what a run was trained on and of the weights that it began with, from its data.json."""
    from zoo.data.identity import DataRecord  # imports numpy, which recipes alone do without

    record = DataRecord.read(path)
    return [record.digest, record.init_from.sha256 if record.init_from else None]


def _together(group: list[Column]) -> Column:
    first, *others = group
    return replace(first, label=f"{first.known_recipe.name} ({len(group)} seeds)", repeats=tuple(others))


def _by_folder(column: Column) -> str:
    return f"{column.known_run.path.name} and {len(column.repeats)} other seed{'s' * (len(column.repeats) > 1)}"


def merged(found: Sequence[dict[str, Any]], columns: Sequence[Column]) -> dict[str, Any]:
    """The facts of several runs (`runs.facts`) as those of one: means, and curves of means where all have a point.

    `seeds` maps each seed to its run's label, final loss and whether it finished.  `final`, `best` and the scores
    have the 95% interval (Student's t) over the seeds as low and high; of a run that diverged nothing is in a mean.
    """
    first = found[0]
    whole = [one for one in found if one["diverged_at"] is None] or list(found)
    return {
        **first,
        **{name: _mean([one[name] for one in found]) for name in MEANS},
        "finished": all(one["finished"] for one in found),
        "lacks": next((one["lacks"] for one in found if one["lacks"]), None),
        "damage": next((one["damage"] for one in found if one["damage"]), None),
        "diverged_at": next((one["diverged_at"] for one in found if one["diverged_at"] is not None), None),
        "environment": first["environment"]
        if all(one["environment"] == first["environment"] for one in found)
        else {"device": "not the same for every seed"},
        "final": _validation([one["final"] for one in whole]),
        "best": _validation([one["best"] for one in whole]),
        "evaluation": _scores([one["evaluation"] for one in whole]),
        "training": _curve([one["training"] for one in whole]),
        "validation": _curve([one["validation"] for one in whole]),
        "seeds": {
            str(column.known_recipe.seed): {
                "source": column.source,
                "loss": one["final"] and one["final"]["loss"],
                "finished": one["finished"],
            }
            for column, one in zip(columns, found, strict=True)
        },
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _with_interval(values: Sequence[float | None]) -> dict[str, Any]:
    """{"value", "low", "high", "n"} over seeds; low and high None with fewer than two."""
    from zoo.evaluation.statistics import t_interval

    known = [value for value in values if value is not None]
    low, high = t_interval(known)
    return {"value": _mean(known), "low": low, "high": high, "n": len(known)}


def _validation(found: Sequence[dict | None]) -> dict[str, Any] | None:
    known = [one for one in found if one is not None]
    if not known:
        return None
    loss, bits = (_with_interval([one[key] for one in known]) for key in ("loss", "bits_per_byte"))
    return {
        "batch": round(sum(one["batch"] for one in known) / len(known)),
        "loss": loss["value"],
        "bits_per_byte": bits["value"],
        "intervals": {"loss": loss, "bits_per_byte": bits},
    }


def _scores(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Scores that every run has; the interval is that over the seeds, not that over the rows of one run."""
    made: dict[str, Any] = {}
    for task, metrics in found[0].items():
        for metric, numbers in metrics.items():
            values = [one.get(task, {}).get(metric, {}).get("value") for one in found]
            if None not in values:
                made.setdefault(task, {})[metric] = numbers | _with_interval(values)
    return made


def _curve(curves: Sequence[list[list[float]]]) -> list[list[float | None]]:
    """[tokens, mean seconds, mean loss] at each number of tokens that all curves have."""
    by_tokens = [{tokens: rest for tokens, *rest in curve} for curve in curves]
    common = [tokens for tokens in by_tokens[0] if all(tokens in each for each in by_tokens)]
    together = ((tokens, zip(*(each[tokens] for each in by_tokens), strict=True)) for tokens in common)
    return [[tokens, *map(_mean, values)] for tokens, values in together]
