"""The strip of layers as HTML for a page, in the letters and colours of `zoo show` and `zoo compare`. No torch."""

from collections.abc import Sequence
from html import escape

from zoo.recipe import LayerConfig
from zoo.report.colours import LETTERS, Look, of_patterns, patterns_of
from zoo.report.show import MAX_ROWS, description


def strip(layers: Sequence[LayerConfig], d_model: int) -> str:
    """One cell a layer, then the legend: each letter's block with its projection and patterns.

    Occurrences of a block that differ in their patterns (`with`) have letters of their own.
    """
    pairs = [(layer.block, description(layer.config, layer.part, d_model)) for layer in layers]
    known: dict[tuple[str, str], Look] = {}
    for layer, pair in zip(layers, pairs, strict=True):
        if pair not in known:
            colours = of_patterns(patterns_of(layer.config.resolve(d_model, part=layer.part)))
            known[pair] = Look(LETTERS[len(known) % len(LETTERS)], colours)
    shown = enumerate(pairs[:MAX_ROWS])
    cells = "".join(_cell(known[pair], f"layer {index}: {', '.join(pair)}") for index, pair in shown)
    more = f"<span>and {len(layers) - MAX_ROWS:,} more</span>" if len(layers) > MAX_ROWS else ""
    legend = "".join(
        f"<li>{_cell(look)} <b>{escape(block)}</b> {escape(about)}</li>" for (block, about), look in known.items()
    )
    return (
        f'<div class="zoo-strip" role="img" aria-label="{escape(spoken(layers))}">{cells}{more}</div>\n'
        f'<ul class="zoo-legend">{legend}</ul>\n'
    )


def band(layers: Sequence[LayerConfig]) -> str:
    """The schedule as narrow cells in the colours of the patterns, without letters: for many schedules side by side."""
    cells = "".join(
        _cell(Look("", of_patterns(patterns_of(layer.mixer))), f"layer {layer.index}: {layer.mixer.describe()}")
        for layer in layers[:MAX_ROWS]
    )
    return f'<div class="zoo-strip" role="img" aria-label="{escape(spoken(layers))}">{cells}</div>'


def pattern_legend(layers: Sequence[LayerConfig]) -> str:
    """The colour of each pattern of the layers, in the order of first use."""
    kinds = dict.fromkeys(kind for layer in layers for kind in patterns_of(layer.mixer) or [""])
    items = (f"<li>{_cell(Look('', of_patterns([kind])))} {kind or 'a state of fixed size'}</li>" for kind in kinds)
    return f'<ul class="zoo-legend">{"".join(items)}</ul>'


def spoken(layers: Sequence[LayerConfig]) -> str:
    """`4 layers: local, local, local, global`."""
    shown = ", ".join(layer.block for layer in layers[:MAX_ROWS])
    return f"{len(layers):,} layer{'s' * (len(layers) != 1)}: {shown}{', ...' * (len(layers) > MAX_ROWS)}"


def _cell(look: Look, title: str = "") -> str:
    hint = f' title="{escape(title)}"' if title else ""
    return f'<span class="zoo-cell" style="background:{look.background}"{hint}>{look.letter}</span>'
