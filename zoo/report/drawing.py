"""Drawings for pages as SVG: transparent, with text in the colour of the page's, so that they can be read on light and
on dark pages; and readable ticks. matplotlib, no torch.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from zoo.report.colours import DASHES, MARKERS, RUN_COLOURS
from zoo.report.rows import binary, decimal

INK = "#010203"  # replaced by the colour of the page's text
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": "#808080",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(_INKED, INK),
}
MOST_TICKS = 6


def draw(name: str, x: str, y: str, fill: Callable[[Axes], None], height: float = 3.4) -> str:
    """An SVG of one pair of axes that `fill` draws into; `name`, of letters and digits, is unique on the page."""
    with rc_context(STYLE | {"svg.hashsalt": f"zoo-{name}"}):
        figure = Figure(figsize=(5.6, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        fill(axes)
        return as_svg(figure, name).replace(INK, "currentColor")


def as_svg(figure: Figure, prefix: str) -> str:
    """A figure as an <svg> element for a page: no header, no metadata, ids that begin with `prefix`.

    A group with the id `PREFIX-curve-3-anything` has the class `curve-3`, by which a legend hides it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(rf'\bid="(?!{prefix}-curve)', f'id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r'<g id="\w+-(curve-\d+)-\w+"', r'\g<0> class="\1"', text)
    return re.sub(r'<svg([^>]*?) width="[^"]*pt"', r"<svg\1", re.sub(r' height="[^"]*pt"', "", text, count=1), count=1)


def line_look(index: int) -> dict[str, Any]:
    """Colour and dashes of a run, as its entry in the legend has them."""
    return {"color": RUN_COLOURS[index % len(RUN_COLOURS)], "linestyle": DASHES[index % len(DASHES)]}


def mark_look(index: int) -> dict[str, Any]:
    """Colour and mark of a run."""
    return {"color": RUN_COLOURS[index % len(RUN_COLOURS)], "marker": [*MARKERS][index % len(MARKERS)], "markersize": 5}


def count_ticks(axis: Axis, log: bool = False) -> None:
    """Ticks such as 50K, 2M and 1.5B; on a logarithmic axis at round numbers or at powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(decimal(value))))
    if log:
        _log_ticks(axis, 10, ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,)))
    else:
        axis.set_major_locator(MaxNLocator(MOST_TICKS, steps=[1, 2, 5, 10]))


def size_ticks(axis: Axis, log: bool = False) -> None:
    """Ticks such as 64 KiB and 2 GiB: powers of two on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(binary(value))))
    if log:
        _log_ticks(axis, 2, ((1,),))
        return
    low, high = axis.get_view_interval()
    step = 2.0 ** math.ceil(math.log2(max(high - low, 1) / MOST_TICKS))
    axis.set_major_locator(FixedLocator([step * n for n in range(MOST_TICKS + 2)]))


def token_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis of context lengths, 1K = 1,024: 256, 8K, 128K."""
    units = ((2**20, "M"), (2**10, "K"), (1, ""))

    def text(value: float, _: int) -> str:
        size, unit = next((size, unit) for size, unit in units if value >= size or size == 1)
        return f"{value / size:g}{unit}"

    axis.set_major_formatter(FuncFormatter(text))
    _log_ticks(axis, 2, ((1,),))


def _log_ticks(axis: Axis, base: int, digits: Sequence[tuple[float, ...]]) -> None:
    """At most MOST_TICKS ticks within the axis, at digits times powers of the base: the first digits that are so few.

    If the last digits are still too many, every second, third, ... of them.
    """
    low, high = axis.get_view_interval()
    powers = range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
    for choice in digits:
        inside = [d * float(base) ** power for power in powers for d in choice]
        inside = [value for value in inside if low * 0.999 <= value <= high * 1.001]
        if len(inside) <= MOST_TICKS:
            break
    step = -(-len(inside) // MOST_TICKS)
    axis.set_major_locator(FixedLocator(inside[:: step or 1]))
    axis.set_minor_locator(NullLocator())


def _short(text: str) -> str:
    """`1.50M` as `1.5M`, `64.00 KiB` as `64 KiB`."""
    return re.sub(r"\.(\d*[1-9])?0+(?=\D|$)", lambda match: f".{match[1]}" if match[1] else "", text)
