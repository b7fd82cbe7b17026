"""Loss curves of runs as SVG for a page: against tokens, wall time and FLOPs. matplotlib, no torch."""

from typing import Any

from matplotlib.axes import Axes

from zoo.report.drawing import count_ticks, draw, line_look, mark_look

AXES = {"tokens": "tokens", "time": "wall time", "flops": "training FLOPs"}
LARGE = ((1e18, "E = 10$^{18}$"), (1e15, "P = 10$^{15}$"), (1e12, "T = 10$^{12}$"))  # letters that need a word
MOST_POINTS = 600
FIRST = 0.1  # of a run; its losses there are far above the others and may leave the linear figures
FEW = 20  # points of a run; the figures of shorter ones show all of them


def curves(columns: list[dict[str, Any]], log: bool = False) -> dict[str, str]:
    """One SVG an axis, of all columns that have a run with at least one training batch; {} if there is none.

    A group of class `curve-N` holds what belongs to column N: the training loss, smoothed, thin, and the validations.
    log: both axes logarithmic, which show the whole run; linear ones are cut at the highest loss after the first tenth.
    """
    runs = [(index, column["run"]) for index, column in enumerate(columns) if _has_points(column)]
    return {axis: _figure(axis, label, runs, log) for axis, label in AXES.items()} if runs else {}


def _has_points(column: dict) -> bool:
    return bool(column.get("run") and column["run"]["training"])


def _figure(axis: str, label: str, runs: list[tuple[int, dict]], log: bool) -> str:
    name = f"{axis}log" if log else axis
    unit, size = _unit(runs) if axis == "time" else ("", 1)
    if axis == "flops":
        most = max(record[0] * run["flops_per_token"] for _, run in runs for record in run["training"])
        unit = next((text for size, text in LARGE if most >= size), "")

    def fill(axes: Axes) -> None:
        if log:
            axes.set_xscale("log")
            axes.set_yscale("log")
        for index, run in runs:
            x, y = _points(axis, run, smoothed(run["training"]), size, log)
            axes.plot(x, y, linewidth=1.2, **line_look(index))[0].set_gid(f"{name}-curve-{index}-train")
            x, y = _points(axis, run, run["validation"], size, log)
            look = {"linewidth": 2.2, **line_look(index), **mark_look(index)}
            axes.plot(x, y, **look)[0].set_gid(f"{name}-curve-{index}-validation")
        if not log:
            axes.set_xlim(left=0)
            axes.set_ylim(*_interesting(runs, axes.get_ylim()))
        else:
            count_ticks(axes.yaxis, log)
        count_ticks(axes.xaxis, log)

    return draw(name, f"{label}, {unit}" if unit else label, "loss, nats a token", fill)


def _unit(runs: list[tuple[int, dict]]) -> tuple[str, float]:
    """The unit of the time axis and its seconds."""
    longest = max(record[1] for _, run in runs for record in run["training"])
    return next((unit, size) for unit, size in (("h", 3600), ("min", 60), ("s", 1)) if longest >= 3 * size or size == 1)


def _interesting(runs: list[tuple[int, dict]], limits: tuple[float, float]) -> tuple[float, float]:
    """The ends of the axis of losses: a little beyond what the losses are after the first tenth of each run."""
    if any(len(run["training"]) < FEW for _, run in runs):
        return limits
    later = []
    for _, run in runs:
        end = run["training"][-1][0]
        shown = [*smoothed(run["training"]), *run["validation"]]
        later += [record[2] for record in shown if record[0] >= FIRST * end]
    margin = 0.05 * (max(later) - min(later))
    return max(limits[0], min(later) - margin), min(limits[1], max(later) + margin)


def _points(axis: str, run: dict, records: list[list[float]], size: float, log: bool) -> tuple[list, list]:
    """records: [tokens, seconds, loss] each.  size: seconds of the unit of time.  log: without what is at zero."""
    place = {
        "tokens": lambda r: r[0],
        "time": lambda r: r[1] / size,
        "flops": lambda r: r[0] * run["flops_per_token"],
    }[axis]
    kept = [(place(record), record[2]) for record in records if not log or place(record) > 0]
    return [x for x, _ in kept], [y for _, y in kept]


def smoothed(records: list[list[float]]) -> list[list[float]]:
    """At most MOST_POINTS records, each the mean loss of the fiftieth of the run that ends there."""
    window = max(1, len(records) // 50)
    step = -(-len(records) // MOST_POINTS)
    kept = [*range(len(records) - 1, -1, -step)][::-1]
    means = []
    for last in kept:
        recent = records[max(0, last - window + 1) : last + 1]
        means.append([*records[last][:2], sum(record[2] for record in recent) / len(recent)])
    return means
