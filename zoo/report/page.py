"""A comparison as one HTML page that needs nothing else: styles, script and drawings are inside. No torch."""

import html
from collections.abc import Iterator
from importlib import resources
from typing import Any

from zoo import __version__
from zoo.report.colours import MARKERS, RUN_COLOURS, Look
from zoo.report.rows import Row, Value, rows
from zoo.report.show import MAX_ROWS
from zoo.report.text import looks_of
from zoo.terminal import clean

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_LENGTHS = (
    "Attention's FLOPs, the caches and the reach are arithmetic: beyond a recipe's max_seq_len they say what it would "
    "cost, not that the model works there. Nominal counts keys and values of every layer at every token, as papers do; "
    "allocated is the size of the cache tensors, with ring buffers and pooled entries. Ratios are to the first column."
)


def as_page(found: dict[str, Any], curves: dict[str, str], maps: list[tuple[str, str]]) -> str:
    """The page of a comparison.

    curves: SVG by axis, as `curves.curves` draws them.  maps: (caption, SVG) of each attention map.
    """
    columns = found["columns"]
    labels = ", ".join(column["label"] for column in columns)
    body = "\n".join(
        [
            f"<h1>{f'{len(columns)} architectures, side by side' if len(columns) > 1 else escape(labels)}</h1>",
            f"<p class=dim>{escape(labels)}. Made by zoo compare, attention-zoo {__version__}.</p>",
            notes(found["notes"], "Not everything here is comparable"),
            "<h2>Layers</h2>",
            _strips(columns),
            "<h2>What they cost</h2>",
            _costs(columns, rows(found)),
            _trained(columns, rows(found), curves),
            _maps(maps),
        ]
    )
    return document(labels, body)


def document(title: str, body: str, style: str = "") -> str:
    """A page of HTML with the style and the script of all pages.  style: rules after the common ones."""
    files = resources.files("zoo.report")
    common, script = (files.joinpath(f"page.{end}").read_text(encoding="utf-8") for end in ("css", "js"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{common}{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Text of recipes, names and messages as HTML, in elements and in quoted attributes."""
    return html.escape(clean(text))


def notes(lines: list[str], heading: str) -> str:
    """A box with a heading and a list; nothing without lines."""
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class=notes role="note"><b>{heading}</b><ul>{items}</ul></div>'


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
    legend = "".join(f"<li>{_cell(look)} {escape(attention)}</li>" for attention, look in seen.items())
    return f"<div class=strip>{''.join(parts)}</div><ul class=legend>{legend}</ul>"


def _costs(columns: list[dict], made: list[Row]) -> str:
    heads = "".join(f"<th scope=col data-place={n}>{escape(c['label'])}</th>" for n, c in enumerate(columns))
    lines = list(_cost_lines(columns, [row for row in made if row.group != "trained"]))
    return (
        f"<div class=scroll><table id=costs>"
        f"<thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"<p class=dim>{_LENGTHS} A row's name orders the columns by it.</p>"
    )


def _cost_lines(columns: list[dict], made: list[Row]) -> Iterator[str]:
    if any(column["error"] for column in columns):
        cells = (
            f"<td class=failed data-place={n}>{escape(c['error'])}</td>" if c["error"] else f"<td data-place={n}></td>"
            for n, c in enumerate(columns)
        )
        yield f"<tr><th scope=row>failed</th>{''.join(cells)}</tr>"
    group = None
    for row in made:
        if row.group != group:
            group = row.group
            yield f"<tr class=group><th scope=rowgroup colspan={len(columns) + 1}>{escape(group)}</th></tr>"
        values = "".join(_value(value, place) for place, value in enumerate(row.values))
        yield f"<tr><th scope=row><button class=sort>{escape(row.label)}</button></th>{values}</tr>"


def _value(value: Value | None, place: int | None = None) -> str:
    where = "" if place is None else f" data-place={place}"
    if value is None:
        return f"<td{where}>–</td>"
    number = "" if value.number is None else f' data-n="{value.number:.12g}" title="{value.number:,.6g}"'
    ratio = f"<small>{value.ratio_text}</small>" if value.ratio is not None else ""
    return f"<td{where}{number}>{escape(value.text)}{ratio}</td>"


def _trained(columns: list[dict], made: list[Row], curves: dict[str, str]) -> str:
    kept = [row for row in made if row.group == "trained"]
    if not kept:
        return ""
    heads = "".join(f"<th scope=col><button class=sort>{escape(row.label)}</button></th>" for row in kept)
    lines = (
        f"<tr data-place={place}><th scope=row>{escape(column['label'])}</th>"
        f"{''.join(_value(row.values[place]) for row in kept)}</tr>"
        for place, column in enumerate(columns)
        if column.get("run")
    )
    table = f"<thead><tr><th scope=col>run</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f"<h2>Trained</h2><div class=scroll><table id=runs>{table}</table></div>{_curves(columns, curves)}"


def _curves(columns: list[dict], curves: dict[str, str]) -> str:
    if not curves:
        return ""
    buttons = "".join(
        f'<button data-curve="curve-{n}" aria-pressed="true">{sample(n)}{escape(column["label"])}</button>'
        for n, column in enumerate(columns)
        if column.get("run") and column["run"]["training"]
    )
    figures = "".join(f"<figure>{svg}</figure>" for svg in curves.values())
    about = "Thin: training loss, smoothed over a fiftieth of the run. Thick, with marks: validation."
    return f"<p class=dim>{about}</p><p class='legend toggles'>{buttons}</p><div class=figures>{figures}</div>"


def sample(number: int) -> str:
    """The line and the mark of a curve, for its entry in the legend; dashes as curves.DASHES draws them."""
    dash = ("", "7 3", "2 3", "7 3 2 3")[number % 4]
    colour = RUN_COLOURS[number % len(RUN_COLOURS)]
    stroke = f'stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"'
    mark = f'<path d="{[*MARKERS.values()][number % len(MARKERS)]}" fill="{colour}"/>'
    return f'<svg viewBox="0 0 36 8" aria-hidden="true"><path d="M0 4H36" {stroke}/>{mark}</svg>'


def _maps(maps: list[tuple[str, str]]) -> str:
    if not maps:
        return ""
    figures = "".join(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for caption, svg in maps)
    about = (
        "Rows are queries, columns the keys they see, drawn from the blocks' own forward pass. Weights and inputs are "
        "random, and so is what selection chooses; a run's own choice is drawn by zoo show RUN --pattern layer=N."
    )
    return f"<h2>What a query sees</h2><p class=dim>{about}</p><div class=maps>{figures}</div>"
