"""Loss curves of runs as SVG for a page: against tokens, wall time and FLOPs. matplotlib, no torch."""

import io
import re
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from zoo.report.colours import DASHES, MARKERS, RUN_COLOURS

AXES = {"tokens": "tokens", "time": "wall time, s", "flops": "training FLOPs"}
MOST_POINTS = 600
_STYLE = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.right": False}


def curves(columns: list[dict[str, Any]]) -> dict[str, str]:
    """One SVG an axis, of all columns that have a run with at least one training batch; {} if there is none.

    A group of class `curve-N` holds what belongs to column N: the training loss, smoothed, thin, and the validations.
    """
    runs = [(index, column["run"]) for index, column in enumerate(columns) if _has_points(column)]
    return {axis: _figure(axis, label, runs) for axis, label in AXES.items()} if runs else {}


def _has_points(column: dict) -> bool:
    return bool(column.get("run") and column["run"]["training"])


def _figure(axis: str, label: str, runs: list[tuple[int, dict]]) -> str:
    with rc_context(_STYLE | {"svg.hashsalt": f"zoo-{axis}", "axes.spines.top": False}):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(xlabel=label, ylabel="loss, nats a token")
        axes.grid(alpha=0.25)
        for index, run in runs:
            look: dict[str, Any] = {
                "color": RUN_COLOURS[index % len(RUN_COLOURS)],
                "linestyle": DASHES[index % len(DASHES)],
            }
            x, y = _points(axis, run, smoothed(run["training"]))
            axes.plot(x, y, linewidth=1.2, **look)[0].set_gid(f"{axis}-curve-{index}-train")
            x, y = _points(axis, run, run["validation"])
            marks: dict[str, Any] = {"marker": [*MARKERS][index % len(MARKERS)], "markersize": 5, "linewidth": 2.2}
            axes.plot(x, y, **look, **marks)[0].set_gid(f"{axis}-curve-{index}-validation")
        return as_svg(figure, axis)


def _points(axis: str, run: dict, records: list[list[float]]) -> tuple[list[float], list[float]]:
    """records: [tokens, seconds, loss] each."""
    place = {"tokens": lambda r: r[0], "time": lambda r: r[1], "flops": lambda r: r[0] * run["flops_per_token"]}[axis]
    return [place(record) for record in records], [record[2] for record in records]


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


def as_svg(figure: Figure, prefix: str) -> str:
    """A figure as an <svg> element for a page: no header, no metadata, ids that begin with `prefix`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(rf'\bid="(?!{prefix}-curve)', f'id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r'<g id="\w+-(curve-\d+)-\w+"', r'\g<0> class="\1"', text)
    return re.sub(r'<svg([^>]*?) width="[^"]*pt"', r"<svg\1", re.sub(r' height="[^"]*pt"', "", text, count=1), count=1)
