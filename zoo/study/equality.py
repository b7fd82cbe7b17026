"""What is equal between the architectures of a study apart from the model, and what is not. No torch."""

from collections.abc import Callable, Mapping
from typing import Any

from zoo.errors import shorten
from zoo.recipe import Recipe
from zoo.report.columns import data_read
from zoo.study.expand import Point, Runs
from zoo.study.matching import parameters_of
from zoo.study.results import flops_per_token

PARAMETERS_APART = 0.03
NOT_CHOSEN = "not chosen yet"


def unequal(runs: Runs) -> list[str]:
    """Sentences about what differs between the architectures apart from the model; losses are then less comparable."""
    from zoo.recipe.differences import differences, in_words
    from zoo.report.training import sameness

    names = list(runs.architectures)
    point = runs.points[0]
    first = runs.recipes[names[0], point.label]
    found = []
    for name in names[1:]:
        other = runs.recipes[name, point.label]
        for key, here, there in differences(sameness(first), sameness(other)):
            before, now = in_words(here, there)
            found.append(f"not equal: {key} is {now} in {name}, {before} in {names[0]}")
        for section in ("optimizer", "schedule", "clip_norm", "precision"):
            ours, theirs = (r.train.model_dump(mode="json")[section] for r in (other, first))
            for key, before, now in differences(theirs, ours, f"train.{section}"):
                found.append(f"not equal: {key} is {shorten(now)} in {name}, {shorten(before)} in {names[0]}")
    return found


def equality(runs: Runs, points: Mapping[str, Point | None]) -> list[dict[str, Any]]:
    """What is equal between the architectures and what is not: {"what", "values", "equal"} in the order of a table.

    points: architecture -> the point at which it is judged, None if none is chosen yet; what its points do not have in
    common is then NOT_CHOSEN.
    """
    rows = []
    for what, read in _COMPARED.items():
        values = {name: _value(runs, name, point, read) for name, point in points.items()}
        first = next(iter(values.values()))
        if what == "parameters":
            near = max(abs(value / first - 1) for value in values.values())
            tolerance = max(PARAMETERS_APART, runs.study.config.match.parameters if runs.study.config.match else 0)
            rows.append({"what": f"{what} (within {near:.2%})", "values": values, "equal": near <= tolerance})
            continue
        known = NOT_CHOSEN not in values.values()
        equal = all(value == first for value in values.values()) if known else None
        rows.append({"what": what, "values": values, "equal": equal})
    return rows


def _value(runs: Runs, name: str, point: Point | None, read: Callable[[Recipe], Any]) -> Any:
    found = [read(runs.recipes[name, each.label]) for each in ([point] if point is not None else runs.points)]
    return found[0] if all(each == found[0] for each in found) else NOT_CHOSEN


def _optimizer(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.train.optimizer.model_dump(mode="json").items() if key != "lr"}


_COMPARED = {
    "parameters": parameters_of,
    "training FLOPs per token": flops_per_token,
    "duration": lambda r: r.train.duration,
    "tokens a batch": lambda r: r.train.rows(r.seq_len) * r.seq_len,
    "tokens a row": lambda r: r.seq_len,
    "data": lambda r: {k: v for k, v in data_read(r).items() if k != "tokenizer"},
    "tokenizer and vocabulary": lambda r: [data_read(r)["tokenizer"], r.model.vocab_size],
    "order of the rows, by seed": lambda r: r.data.shuffle,
    "learning rate": lambda r: getattr(r.train.optimizer, "lr", None),
    "optimiser, without it": _optimizer,
    "schedule": lambda r: r.train.schedule.model_dump(mode="json"),
    "gradient clipping": lambda r: r.train.clip_norm,
    "precision": lambda r: r.train.precision,
    "validation batches, rows of each": lambda r: [r.eval.batches, r.train.rows(r.seq_len)],
    "d_model, layers": lambda r: [r.model.d_model, len(r.model.expanded())],
}
