"""The strip of layers as HTML for a page, in the letters and colours of `zoo show` and `zoo compare`. No torch."""

from collections.abc import Sequence
from html import escape

from zoo.recipe import LayerConfig
from zoo.report.show import COLOURS, LETTERS, MAX_ROWS, description


def strip(layers: Sequence[LayerConfig], d_model: int) -> str:
    """One cell a layer, then the legend: each letter's block with its projection and patterns.

    Occurrences of a block that differ in their patterns (`with`) have letters of their own.
    """
    looks = [(layer.block, description(layer.config, layer.part, d_model)) for layer in layers]
    known = list(dict.fromkeys(looks))
    shown = enumerate(looks[:MAX_ROWS])
    cells = "".join(_cell(known.index(look), f"layer {index}: {', '.join(look)}") for index, look in shown)
    more = f"<span>and {len(layers) - MAX_ROWS:,} more</span>" if len(layers) > MAX_ROWS else ""
    legend = "".join(
        f"<li>{_cell(number)} <b>{escape(block)}</b> {escape(about)}</li>"
        for number, (block, about) in enumerate(known)
    )
    return (
        f'<div class="zoo-strip" role="img" aria-label="{escape(spoken(layers))}">{cells}{more}</div>\n'
        f'<ul class="zoo-legend">{legend}</ul>\n'
    )


def spoken(layers: Sequence[LayerConfig]) -> str:
    """`4 layers: local, local, local, global`."""
    shown = ", ".join(layer.block for layer in layers[:MAX_ROWS])
    return f"{len(layers):,} layer{'s' * (len(layers) != 1)}: {shown}{', ...' * (len(layers) > MAX_ROWS)}"


def _cell(number: int, title: str = "") -> str:
    colour, letter = COLOURS[number % len(COLOURS)], LETTERS[number % len(LETTERS)]
    hint = f' title="{escape(title)}"' if title else ""
    return f'<span class="zoo-cell" style="background:{colour}"{hint}>{letter}</span>'
