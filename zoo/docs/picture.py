"""The picture of README and the home page: layer schedules, and measured decoding. No torch, no matplotlib.

    python -m zoo.docs.picture        # writes docs/assets/overview.svg anew

The strips come from the recipes, the curves from docs/benchmarks/decode_340m.json (`zoo bench decode`).
"""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from zoo.docs.pages import checkout
from zoo.recipe import LayerConfig, load_recipe
from zoo.report.colours import RUN_COLOURS, Look, looks, patterns_of

PATH = "assets/overview.svg"
RECIPES = {
    "full attention": "340m/full",
    "3 windows : 1 full": "340m/mixed_3to1",
    "NSA": "340m/nsa",
    "alternating NSA": "ansa_340m",
}
CURVES = {"full_340m": "full attention", "nsa_340m": "NSA", "ansa_340m": "alternating NSA"}
ROWS = 32  # decoded together
INK, GRID = "#7d838c", "#7d838c40"  # readable on white and on black
WIDTH, HEIGHT, STRIPS = 1200, 440, 118
PANEL = (96, 204, 420, 170)  # left, top, width, height of the first panel
NEXT = 610  # from the left of one panel to that of the next


def picture(root: Path) -> str:
    """The picture as SVG, from the recipes and the benchmark of a checkout."""
    found = json.loads((root / "docs" / "benchmarks" / "decode_340m.json").read_text(encoding="utf-8"))
    rows = [row for row in found["rows"] if row["batch"] == ROWS and not row["skipped"] and row["recipe"] in CURVES]
    machine = f"{found['machine']['device']}, bf16, {ROWS} rows decoded together, measured {found['machine']['date']}"
    parts = [*_strips(root), _text(PANEL[0], STRIPS + 40, machine, size=15)]
    parts += _panel(0, "decoding speed, tokens/s", rows, lambda row: row["decode_tokens_per_s"])
    parts += _panel(1, "peak memory, GiB", rows, lambda row: row["peak_bytes"] / 2**30)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" role="img">'
    )
    about = "<title>Layer schedules of four models, and their decoding speed and peak memory by context</title>"
    return "\n".join([head, about, *parts, "</svg>"]) + "\n"


def colours(root: Path) -> dict[str, Look]:
    """What the layers attend to -> how it is shown, over all strips, in order of appearance."""
    layers = [layer for name in RECIPES.values() for layer in _expanded(root, name)]
    return looks({"attention": layer.mixer.describe(), "patterns": patterns_of(layer.mixer)} for layer in layers)


def _expanded(root: Path, name: str) -> list[LayerConfig]:
    return load_recipe(root / "recipes" / f"{name}.yaml").model.expanded()


def _strips(root: Path) -> list[str]:
    known = colours(root)
    parts = [f"<defs>{''.join(map(_stripes, known.values()))}</defs>"]
    for line, (label, name) in enumerate(RECIPES.items()):
        y = 10 + line * 26
        parts.append(_text(176, y + 16, label, anchor="end"))
        for index, layer in enumerate(_expanded(root, name)):
            parts += _cell(known[layer.mixer.describe()], 190 + index * 24, y, 21)
    for number, (what, look) in enumerate(known.items()):
        y = 10 + number * 21
        parts += _cell(look, 800, y, 16)
        parts.append(_text(824, y + 13, what, size=14))
    return parts


def _cell(look: Look, x: float, y: float, size: float) -> list[str]:
    """A square in the colours of the patterns, and the letter."""
    fill = look.colours[0] if len(look.colours) == 1 else f"url(#stripes-{look.letter})"
    square = f'<rect x="{x:g}" y="{y:g}" width="{size:g}" height="{size:g}" rx="3" fill="{fill}"/>'
    letter = _text(x + size / 2, y + size * 0.74, look.letter, anchor="middle", fill="#000", size=round(size * 0.64))
    return [square, letter]


def _stripes(look: Look) -> str:
    """Equal stripes as a gradient without transitions, for looks of several colours."""
    if len(look.colours) == 1:
        return ""
    size = 1 / len(look.colours)
    stops = "".join(
        f'<stop offset="{end:.4g}" stop-color="{colour}"/>'
        for n, colour in enumerate(look.colours)
        for end in (n * size, (n + 1) * size)
    )
    return f'<linearGradient id="stripes-{look.letter}">{stops}</linearGradient>'


def _panel(number: int, title: str, rows: Sequence[dict[str, Any]], value) -> list[str]:
    """Lines over the context, both axes logarithmic."""
    left, top, width, height = PANEL[0] + number * NEXT, *PANEL[1:]
    contexts = sorted({row["context"] for row in rows})
    values = [value(row) for row in rows]
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def x(context: float) -> float:
        return left + width * math.log(context / contexts[0]) / math.log(contexts[-1] / contexts[0])

    def y(found: float) -> float:
        return top + height * (1 - math.log(found / low) / math.log(high / low))

    parts = [_text(left, top - 16, title, size=16, weight="bold")]
    for tick in ticks:
        parts.append(f'<path d="M{left} {y(tick):.1f}h{width}" stroke="{GRID}"/>')
        parts.append(_text(left - 8, y(tick) + 5, f"{tick / 1000:g}K" if tick >= 1000 else f"{tick:g}", anchor="end"))
    parts += [_text(x(c), top + height + 20, f"{c // 1024}K tokens", anchor="middle") for c in contexts]
    for index, (recipe, label) in enumerate(CURVES.items()):
        points = sorted((row["context"], value(row)) for row in rows if row["recipe"] == recipe)
        path = " ".join(f"{x(c):.1f},{y(v):.1f}" for c, v in points)
        colour = RUN_COLOURS[index]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="3"/>')
        parts += [f'<circle cx="{x(c):.1f}" cy="{y(v):.1f}" r="4.5" fill="{colour}"/>' for c, v in points]
        parts.append(_text(left + index * 140, top + height + 50, label, fill=colour, weight="bold"))
    return parts


def _ticks(least: float, most: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last one up to `least` to the first one from `most` on."""
    found = [digit * 10.0**power for power in range(-3, 13) for digit in (1, 2, 5)]
    first = max(tick for tick in found if tick <= least)
    last = min(tick for tick in found if tick >= most)
    return [tick for tick in found if first <= tick <= last]


def _text(
    x: float, y: float, text: str, anchor: str = "start", fill: str = INK, size: int = 14, weight: str = ""
) -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    at = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{bold}'
    return f"<text {at}>{escape(text)}</text>"


if __name__ == "__main__":
    folder = checkout()
    (folder / "docs" / PATH).write_text(picture(folder), encoding="utf-8")
