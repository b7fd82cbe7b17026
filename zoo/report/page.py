"""A comparison as one HTML page that needs nothing else: styles, script and drawings are inside. No torch."""

from dataclasses import dataclass, field
from typing import Any

from zoo import __version__
from zoo.report import page_tables
from zoo.report.colours import Look
from zoo.report.html import document, escape, legend, notes
from zoo.report.rows import Row, rows
from zoo.report.show import MAX_ROWS
from zoo.report.text import looks_of


@dataclass(frozen=True)
class Drawings:
    """What is drawn for a page, as SVG.

    curves: by their axis, as `curves.curves` draws them; log_curves: with a logarithmic axis.  trade_off: loss against
    cache.  costs: by caption.  maps: tokens, and (caption, SVG) of each attention map.  origin: the section that says
    where the numbers come from, as HTML.
    """

    curves: dict[str, str] = field(default_factory=dict)
    log_curves: dict[str, str] = field(default_factory=dict)
    trade_off: str | None = None
    costs: dict[str, str] = field(default_factory=dict)
    maps: tuple[int, list[tuple[str, str]]] | None = None
    origin: str = ""


def as_page(found: dict[str, Any], drawn: Drawings) -> str:
    """The page of a comparison (`facts.comparison`): verdict and curves first, then costs, layers, tables and maps."""
    columns, made = found["columns"], rows(found)
    labels = ", ".join(column["label"] for column in columns)
    body = "\n".join(
        [
            f"<h1>{f'{len(columns)} architectures, side by side' if len(columns) > 1 else escape(labels)}</h1>",
            f"<p class=dim>{escape(labels)}. Made by zoo compare, attention-zoo {__version__}.</p>",
            f"<div class=top>{_verdict(found['verdict'])}"
            f"{notes(found['notes'], 'Not everything here is comparable')}</div>",
            _legend(columns, drawn),
            _trained(columns, [row for row in made if row.group == "trained"], drawn),
            _figures("Costs against context", _COSTS, drawn.costs),
            "<h2>Layers</h2>",
            _strips(columns),
            "<h2>What they cost</h2>",
            page_tables.costs(columns, [row for row in made if row.group != "trained"]),
            _maps(drawn.maps),
            drawn.origin,
        ]
    )
    return document(labels, body)


_COSTS = "A mark stands at the model's own max_seq_len; beyond it the line is arithmetic. All axes are logarithmic."
_CURVES = (
    "Thin: training loss, smoothed over a fiftieth of the run. Thick, with marks: validation. In longer runs the "
    "losses of the first tenth lie above the figure; logarithmic axes show them."
)


def _verdict(lines: list[str]) -> str:
    return f"<ul class=verdicts>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _legend(columns: list[dict], drawn: Drawings) -> str:
    """The buttons of all columns that are drawn."""
    if not (drawn.curves or drawn.costs):
        return ""
    return legend({n: column["label"] for n, column in enumerate(columns) if "parameters" in column})


def _trained(columns: list[dict], made: list[Row], drawn: Drawings) -> str:
    if not made:
        return ""
    parts = ["<h2>Trained</h2>"]
    if drawn.curves:
        button = "<button class=log aria-pressed=false>logarithmic axes</button>" if drawn.log_curves else ""
        shown = [
            f"<div class=linear>{svg}</div><div class=logarithmic>{drawn.log_curves.get(axis, '')}</div>"
            for axis, svg in drawn.curves.items()
        ]
        shown += [drawn.trade_off] if drawn.trade_off else []
        figures = "".join(f"<figure>{one}</figure>" for one in shown)
        parts.append(f"<p class=dim>{_CURVES} {button}</p><div class=figures>{figures}</div>")
    return "".join([*parts, page_tables.runs(columns, made)])


def _figures(heading: str, about: str, drawn: dict[str, str]) -> str:
    if not drawn:
        return ""
    figures = "".join(f"<figure>{svg}<figcaption>{escape(text)}</figcaption></figure>" for text, svg in drawn.items())
    return f"<h2>{heading}</h2><p class=dim>{about}</p><div class=figures>{figures}</div>"


def _cell(look: Look, title: str = "") -> str:
    return f'<span class=cell style="background:{look.background}" title="{escape(title)}">{look.letter}</span>'


def _strips(columns: list[dict]) -> str:
    seen = looks_of(columns)
    parts = []
    for column in columns:
        layers = column.get("layers", [])
        cells = [
            _cell(seen[layer["attention"]], f"layer {index}: {layer['block']}, {layer['attention']}")
            for index, layer in enumerate(layers[:MAX_ROWS])
        ]
        more = f"<span>and {len(layers) - MAX_ROWS:,} more</span>" if len(layers) > MAX_ROWS else ""
        shown = f"<div class=cells>{''.join(cells)}{more}</div>" if layers else "<span class=failed>failed</span>"
        parts.append(f"<b>{escape(column['label'])}</b>{shown}")
    items = "".join(f"<li>{_cell(look)} {escape(attention)}</li>" for attention, look in seen.items())
    about = "A colour stands for a pattern, a letter for a projection with its patterns."
    return f"<div class=strip>{''.join(parts)}</div><ul class=legend>{items}</ul><p class=dim>{about}</p>"


def _maps(maps: tuple[int, list[tuple[str, str]]] | None) -> str:
    if maps is None:
        return ""
    length, drawn = maps
    figures = "".join(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for caption, svg in drawn)
    about = (
        f"{length:,} tokens: rows are queries, columns the keys they see, drawn from the blocks' own forward pass. "
        "Weights and inputs are random, and so is what selection chooses; a run's own choice is drawn by "
        "zoo show RUN --pattern layer=N."
    )
    return f"<h2>What a query sees</h2><p class=dim>{about}</p><div class=maps>{figures}</div>"
