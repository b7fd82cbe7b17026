"""The picture of README and the home page: layer schedules, losses, memory by context. No torch, no matplotlib.

    python -m zoo.docs.picture        # writes the four files docs/assets/overview*.svg anew

The strips come from the recipes, the losses from docs/studies/asa_small/outcomes (`zoo study run`), the memory from
docs/benchmarks/decode_340m.json (`zoo bench decode`).
"""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.docs.pages import checkout
from zoo.docs.svg import DARK, LIGHT, Axes, Ink, cell, stripes, text
from zoo.errors import ZooError
from zoo.evaluation.statistics import t_interval
from zoo.recipe import LayerConfig, load_recipe
from zoo.report.colours import RUN_COLOURS, Look, looks, patterns_of
from zoo.study.statistics import LEVEL

ABOUT = "Layer schedules of four models, and of three the validation loss and the memory of decoding by context"
RECIPES = {
    "full attention": "340m/full",
    "3 windows : 1 full": "340m/mixed_3to1",
    "NSA": "340m/nsa",
    "ASA": "ansa_340m",
}
COLOUR = {"full attention": RUN_COLOURS[0], "NSA": RUN_COLOURS[1], "ASA": RUN_COLOURS[2]}  # the same in both plots
# label -> architecture of the study, at the point of the grid that it chose with seed 1
LOSSES = {"full attention": "full-lr=0.001", "NSA": "nsa-lr=0.002", "ASA": "asa-lr=0.001"}
SEEDS = (2, 3, 4, 5)  # those that count; docs/studies/asa_small.md
FIRST_TOKENS = 6e6  # where the curves begin: the fall from 9.7 nats before that would flatten the rest
MEMORY = {"full attention": "full_340m", "NSA": "nsa_340m", "ASA": "ansa_340m"}
ROWS = 32  # decoded together


@dataclass(frozen=True)
class Layout:
    """Where the parts stand, in units of the picture: side by side, or one below the other for a phone."""

    width: int
    height: int
    title: tuple[int, int]  # of the strips
    label: tuple[int, int]  # of the first strip: the end or, above the cells, the start of its label
    cells: tuple[int, int]  # the corner of the first strip
    line: int  # from one strip to the next
    step: int  # from one cell to the next
    legend: tuple[int, int]
    legend_columns: int
    legend_size: int  # of its letters
    panels: tuple[tuple[int, int], tuple[int, int]]  # the corners of the two plots' axes
    plot: tuple[int, int]  # width and height of the axes


WIDE = Layout(900, 580, (24, 24), (158, 58), (170, 42), 28, 25, (170, 164), 2, 14, ((64, 338), (516, 338)), (364, 180))
NARROW = Layout(390, 1008, (8, 22), (8, 50), (8, 58), 50, 15, (8, 242), 1, 13, ((48, 464), (48, 790)), (322, 160))
FILES = {
    "assets/overview.svg": (WIDE, LIGHT),
    "assets/overview_dark.svg": (WIDE, DARK),
    "assets/overview_narrow.svg": (NARROW, LIGHT),
    "assets/overview_narrow_dark.svg": (NARROW, DARK),
}


def pictures(root: Path) -> dict[str, str]:
    """Path below docs/ -> SVG, from the recipes, the study and the benchmark of a checkout."""
    return {path: _picture(root, layout, ink) for path, (layout, ink) in FILES.items()}


def _picture(root: Path, at: Layout, ink: Ink) -> str:
    size = f'viewBox="0 0 {at.width} {at.height}" width="{at.width}" height="{at.height}"'
    font = 'font-family="Helvetica, Arial, sans-serif"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} role="img"><title>{ABOUT}</title>'
    parts = [*_strips(root, at, ink), *_loss_panel(root, at, ink), *_memory_panel(root, at, ink)]
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def colours(root: Path) -> dict[str, Look]:
    """What the layers attend to -> how it is shown, over all strips, in order of appearance."""
    layers = [layer for name in RECIPES.values() for layer in _expanded(root, name)]
    return looks({"attention": layer.mixer.describe(), "patterns": patterns_of(layer.mixer)} for layer in layers)


def _expanded(root: Path, name: str) -> list[LayerConfig]:
    return load_recipe(root / "recipes" / f"{name}.yaml").model.expanded()


def _strips(root: Path, at: Layout, ink: Ink) -> list[str]:
    known, size = colours(root), at.step - 2
    parts = [f"<defs>{''.join(map(stripes, known.values()))}</defs>"]
    parts.append(
        text(at.title[0], at.title[1], "attention of each layer, first to last", ink.strong, 17, weight="bold")
    )
    for line, (label, name) in enumerate(RECIPES.items()):
        x, y = at.label
        parts.append(text(x, y + line * at.line, label, ink.strong, anchor="end" if at is WIDE else "start"))
        for index, layer in enumerate(_expanded(root, name)):
            look = known[layer.mixer.describe()]
            parts += cell(look, at.cells[0] + index * at.step, at.cells[1] + line * at.line, size)
    down = math.ceil(len(known) / at.legend_columns)
    for number, (what, look) in enumerate(known.items()):
        x, y = at.legend[0] + number // down * 260, at.legend[1] + number % down * 24
        parts += [*cell(look, x, y, 17), text(x + 24, y + 14, what, ink.plain, at.legend_size)]
    return parts


@dataclass(frozen=True)
class Point:
    """Validation loss over the seeds after some training tokens, in nats a token, with the 95% interval of the mean."""

    tokens: float
    mean: float
    low: float
    high: float


def curves(root: Path) -> dict[str, list[Point]]:
    """Label -> points of its curve, from FIRST_TOKENS on."""
    return {label: [*filter(lambda p: p.tokens >= FIRST_TOKENS, _curve(root, name))] for label, name in LOSSES.items()}


def _curve(root: Path, name: str) -> Iterator[Point]:
    runs = [_outcome(root, name, seed)["validation"] for seed in SEEDS]
    for seeds in zip(*runs, strict=True):
        losses = [loss for _, loss in seeds]
        low, high = t_interval(losses, LEVEL)
        if low is None or high is None:
            raise ZooError(f"the study of {name} has too few seeds for an interval")
        yield Point(seeds[0][0], statistics.mean(losses), low, high)


def _outcome(root: Path, name: str, seed: int) -> dict[str, Any]:
    path = root / "docs" / "studies" / "asa_small" / "outcomes" / f"{name}-seed{seed}.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"]


def _loss_panel(root: Path, at: Layout, ink: Ink) -> list[str]:
    found, run = curves(root), _outcome(root, LOSSES["ASA"], SEEDS[0])
    ends, points = (FIRST_TOKENS, float(run["tokens"])), [point for curve in found.values() for point in curve]
    low = math.floor(min(point.low for point in points) * 2) / 2
    high = math.ceil(max(point.high for point in points) * 2) / 2
    axes = Axes(*at.panels[0], *at.plot, lambda tokens: (tokens - ends[0]) / (ends[1] - ends[0]), low, high)
    half_nats = {low + n / 2: f"{low + n / 2:.1f}" for n in range(round((high - low) * 2) + 1)}
    about = f"{run['parameters'] / 1e6:.0f}M parameters; mean and 95% interval of {len(SEEDS)} seeds"
    where = "against training tokens; technical English"
    parts = _heading(axes, ink, "validation loss, nats per token", (about, where))
    parts += axes.frame(ink, half_nats, {n * 1e6: f"{n}M" for n in (10, 20, 30)})
    for label, curve in found.items():
        parts.append(axes.band([(point.tokens, point.low, point.high) for point in curve], COLOUR[label]))
        parts += axes.curve([(point.tokens, point.mean) for point in curve], COLOUR[label], dots=False)
    return parts + _key(axes, found)


def _memory_panel(root: Path, at: Layout, ink: Ink) -> list[str]:
    found = json.loads((root / "docs" / "benchmarks" / "decode_340m.json").read_text(encoding="utf-8"))
    rows = [row for row in found["rows"] if row["batch"] == ROWS and not row["skipped"]]
    contexts = sorted({row["context"] for row in rows})
    doublings = math.log(contexts[-1] / contexts[0])
    axes = Axes(*at.panels[1], *at.plot, lambda tokens: math.log(tokens / contexts[0]) / doublings, 0, 120)
    about = f"340M parameters, {ROWS} rows, bf16; one {found['machine']['device']}"
    parts = _heading(axes, ink, "peak memory of decoding, GiB", (about, "against tokens of context"))
    parts += axes.frame(ink, {n: str(n) for n in range(0, 121, 40)}, {c: f"{c // 1024}K" for c in contexts})
    for label, recipe in MEMORY.items():
        points = sorted((row["context"], row["peak_bytes"] / 2**30) for row in rows if row["recipe"] == recipe)
        parts += axes.curve(points, COLOUR[label], dots=True)
    return parts + _key(axes, MEMORY)


def _heading(axes: Axes, ink: Ink, title: str, about: Sequence[str]) -> list[str]:
    """The title above the axes, and what was measured in the lines below it."""
    top = axes.top - 62
    lines = [text(axes.left - 40, top + 22 + n * 18, line, ink.plain, 14) for n, line in enumerate(about)]
    return [text(axes.left - 40, top, title, ink.strong, 17, weight="bold"), *lines]


def _key(axes: Axes, labels: Sequence[str] | dict[str, Any]) -> list[str]:
    """The names of the curves in their colours, below the axes."""
    below = axes.top + axes.height + 48
    return [
        text(axes.left + n * 128, below, label, COLOUR[label], weight="bold")
        for n, label in enumerate(labels)
    ]  # fmt: skip


if __name__ == "__main__":
    folder = checkout()
    for path, drawn in pictures(folder).items():
        (folder / "docs" / path).write_text(drawn, encoding="utf-8")
