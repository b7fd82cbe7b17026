"""A comparison for a terminal: verdict, notes, strips of layers, one table. No torch."""

from collections.abc import Iterable
from typing import Any

from zoo.report.colours import Look, looks
from zoo.report.rows import SETTINGS, Row, Value, rows
from zoo.report.strips import strip
from zoo.tables import Table, Text, has_colours, rendered, width_of

MOST_CELL = 20  # characters of a cell; a longer one is folded, and a table with more columns than fit comes in parts


def as_text(found: dict[str, Any], width: int | None = None, short: bool = False) -> str:
    """The comparison as text for the terminal at hand; `width` in characters overrides its own.

    short: a table of a line for each column instead of the whole one.
    """
    columns = found["columns"]
    parts: list = [Text(line, style="bold") for line in found["verdict"]]
    parts += [Text(f"note: {line}") for line in found["notes"]]
    parts += [Text(f"failed: {column['label']}: {column['error']}") for column in columns if column["error"]]
    parts += [Text(), *_strips(columns), Text()]
    made, room = rows(found), width or width_of()
    parts += [_short_table(columns, made, found["seq_lens"])] if short else _tables(columns, made, room)
    return rendered(parts, width).lstrip("\n")


def _tables(columns: list[dict], made: list[Row], width: int) -> Iterable[Table]:
    """The table in as many parts as the terminal needs, each with the first column, which the ratios refer to.

    A part leaves out the rows that none of its columns has, and settings that its columns share.
    """
    labels = max((len(row.label) + 2 for row in made), default=0) + 2
    for shown in _parts([_width(column, index, made) for index, column in enumerate(columns)], width - labels):
        part = Table("", *(columns[index]["label"] for index in shown))
        part.columns[0].min_width = min(labels - 2, width // 2)
        for column in part.columns[1:]:
            column.justify, column.max_width = "right", MOST_CELL
        group = None
        for row in made:
            cells = [row.values[index] for index in shown]
            if all(value is None for value in cells) or (row.group == SETTINGS and len(set(cells)) == 1):
                continue
            if row.group != group:
                group = row.group
                part.add_row(Text(group, style="bold"))
            part.add_row(f"  {row.label}", *(_cell(row.values[index], index) for index in shown))
        yield part


def _short_table(columns: list[dict], made: list[Row], seq_lens: list[int]) -> Table:
    """A line for each column: the loss if there is one, parameters, and the costs at the first and the last length.

    Ratios stand in the verdict; without them ten lines fit 80 characters.
    """
    by_name = {(row.group, row.label): row for row in made}
    ends = list(dict.fromkeys((seq_lens[0], seq_lens[-1])))
    wanted = {
        "loss": ("trained", "validation loss, final"),
        "parameters": ("parameters", "total"),
        **{f"FLOPs/token\nat {n:,}": ("forward FLOPs per token", f"at {n:,} tokens") for n in ends},
        **{f"cache\nat {n:,}": ("cache of one row, bf16", f"allocated, {n:,} tokens") for n in ends},
    }
    shown = {heading: by_name[name] for heading, name in wanted.items() if name in by_name}
    table = Table("", *shown)
    for one in table.columns[1:]:
        one.justify = "right"
    for index, column in enumerate(columns):
        values = [row.values[index] for row in shown.values()]
        cells = ["" if value is None else value.text for value in values]
        table.add_row(column["label"], *(cells if any(cells) else ["failed", *cells[1:]]))
    return table


def _cell(value: Value | None, index: int) -> str:
    """The text with its ratio; without it in the first column, to which all ratios are."""
    if value is None:
        return ""
    return f"{value.text} {value.ratio_text}".strip() if index else value.text


def _width(column: dict, index: int, made: list[Row]) -> int:
    """Characters of a column with the space after it."""
    return min(MOST_CELL, max(len(column["label"]), *(len(_cell(row.values[index], index)) for row in made), 1)) + 2


def _parts(widths: list[int], room: int) -> Iterable[list[int]]:
    """Groups of columns that fit into `room`: each has the first column and at least one other."""
    shown, used = [0], widths[0]
    for index, width in enumerate(widths[1:], start=1):
        if len(shown) > 1 and used + width > room:
            yield shown
            shown, used = [0], widths[0]
        shown.append(index)
        used += width
    yield shown


def _strips(columns: list[dict]) -> list[Text]:
    seen, coloured = looks_of(columns), has_colours()
    widest = max(len(column["label"]) for column in columns)
    lines = []
    for column in columns:
        title = f"{column['label']:{widest}}  "
        layers = [seen[layer["attention"]] for layer in column.get("layers", ())]
        lines.append(strip(layers, title, coloured) if layers else Text(title).append("failed", style="red"))
    legend = [
        Text(" " * (widest + 2)).append_tokens(look.cell() if coloured else [(look.letter, "")]).append(f" {attention}")
        for attention, look in seen.items()
    ]
    return [*lines, *legend]


def looks_of(columns: list[dict]) -> dict[str, Look]:
    """`looks` of all columns together, so that a letter means the same in each."""
    return looks(layer for column in columns for layer in column.get("layers", ()))
