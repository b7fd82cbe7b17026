"""Pictures of results: depth against length for needles, loss against position. Imports matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo.blocks.making import is_own
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.results import Result
from zoo.evaluation.table import short_names
from zoo.evaluation.task import Task

NOTHING_DRAWN = "--plot: draws the needles (niah) and loss_by_position; none of them is among the tasks"
SUFFIXES = (".svg", ".png", ".pdf")


def plot(results: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Write a picture of the results of some models: a heat map for each needle task and model, and the curves of
    loss by position.  Raises EvaluationError if none of the results has either, or for an unknown kind of file.
    """
    check_suffix(path)
    maps = [
        (model, result)
        for model, found in results.items()
        for result in found
        if "length_depth" in result.by
    ]  # fmt: skip
    curves = [(model, result) for model, found in results.items() for result in found if _has_lengths(result)]
    if not maps and not curves:
        raise EvaluationError(NOTHING_DRAWN)
    from matplotlib.figure import Figure

    n = len(maps) + bool(curves)
    columns = min(3, n)
    rows = -(-n // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    names = short_names(results)
    for axis, (model, result) in zip(axes, maps, strict=False):
        _heat_map(figure, axis, names[model], result)
    if curves:
        _curves(axes[len(maps)], [(names[model], result) for model, result in curves])
    for axis in axes[n:]:
        axis.remove()
    figure.savefig(path, dpi=150)


def check_drawn(tasks: Sequence[Task]) -> None:
    """Raise EvaluationError if the results of none of the tasks can be drawn, before hours of scoring end in that.

    A task of another package may report breakdowns that it does not state.
    """
    if not any(
        "length_depth" in task.facets or task.task == "loss_by_position" or not is_own(type(task)) for task in tasks
    ):
        raise EvaluationError(NOTHING_DRAWN)


def check_suffix(path: Path) -> None:
    """Raise EvaluationError for a file that cannot be drawn to, before hours of scoring end in that error."""
    if path.suffix not in SUFFIXES:
        raise EvaluationError(f"--plot: must end in {', '.join(SUFFIXES)}; found {path.name}")
    if path.is_dir() or not path.parent.is_dir():
        raise EvaluationError(f"--plot: must name a file in a folder that exists; found {path}")


def _heat_map(figure, axis, name: str, result: Result) -> None:
    """Share of right answers by depth (downwards) and length (to the right); the scale goes from chance to all."""
    cells = {tuple(key.split("/")): numbers for key, numbers in result.by["length_depth"].items()}
    lengths = sorted({length for length, _ in cells}, key=int)
    depths = sorted({depth for _, depth in cells}, key=float)
    metric = "accuracy" if all("accuracy" in numbers for numbers in cells.values()) else "rank_accuracy"
    shares = np.array(
        [
            [cells.get((length, depth), {}).get(metric, {}).get("value", np.nan) for length in lengths]
            for depth in depths
        ]
    )
    chance = result.metrics[metric]["chance"] or 0.0
    shown = axis.imshow(shares, vmin=chance, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
    axis.set_xticks(range(len(lengths)), [f"{int(length):,}" for length in lengths])
    marks = np.unique(np.linspace(0, len(depths) - 1, min(5, len(depths))).astype(int))
    axis.set_yticks(marks, [f"{float(depths[i]):.0%}" for i in marks])
    axis.set_xlabel("length in tokens")
    axis.set_ylabel("depth of the needle")
    axis.set_title(f"{name}: {result.task}", fontsize=10)
    bar = figure.colorbar(shown, ax=axis, label=metric.replace("_", " "))
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _has_lengths(result: Result) -> bool:
    return any(": " in key for key in result.by.get("position", ()))


def _curves(axis, curves: Sequence[tuple[str, Result]]) -> None:
    """Nats per token against position, one line for each model and length, with the 95% interval as a band."""
    for name, result in curves:
        by_length: dict[str, list] = {}
        for key, numbers in result.by["position"].items():
            length, _, span = key.partition(": ")
            by_length.setdefault(length, []).append((np.mean([int(end) for end in span.split("-")]), numbers["nats"]))
        for length, points in sorted(by_length.items(), key=lambda item: int(item[0])):
            places = [place for place, _ in points]
            line = axis.plot(places, [n["value"] for _, n in points], label=f"{name}, {int(length):,} tokens")
            if all(n["low"] is not None for _, n in points):
                low, high = ([n[end] for _, n in points] for end in ("low", "high"))
                axis.fill_between(places, low, high, color=line[0].get_color(), alpha=0.2, linewidth=0)
    axis.set_xlabel("position in tokens")
    axis.set_ylabel("nats per token")
    axis.set_title("loss by position", fontsize=10)
    axis.legend(fontsize=8)
