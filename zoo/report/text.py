"""A comparison for a terminal: notes, strips of layers, one table. No torch."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from zoo.report.rows import Row, rows
from zoo.show import MAX_ROWS, attentions, plain_table, rendered, strip_cell, width_of

LABEL_WIDTH, CELL_WIDTH = 36, 20  # characters; a table with more columns than fit is printed in parts


def as_text(found: dict[str, Any], width: int | None = None) -> str:
    """The comparison as text for the terminal at hand; `width` in characters overrides its own."""
    columns = found["columns"]
    parts: list = [Text(f"note: {line}") for line in found["notes"]]
    parts += [Text(f"failed: {column['label']}: {column['error']}") for column in columns if column["error"]]
    parts += [Text(), *_strips(columns), Text()]
    parts += _tables(columns, rows(found), width or width_of())
    return rendered(parts, width).lstrip("\n")


def _tables(columns: list[dict], made: list[Row], width: int) -> Iterable[Table]:
    """The table in as many parts as the terminal needs, each with the first column, which the ratios refer to."""
    room = max(1, (width - LABEL_WIDTH) // CELL_WIDTH - 1)
    others = list(range(1, len(columns)))
    for start in range(0, len(others), room):
        shown = [0, *others[start : start + room]]
        part = plain_table("", *(columns[index]["label"] for index in shown))
        for column in part.columns[1:]:
            column.justify = "right"
        group = None
        for row in made:
            if row.group != group:
                group = row.group
                part.add_row(Text(group, style="bold"))
            cells = (row.values[index] for index in shown)
            part.add_row(f"  {row.label}", *("" if v is None else f"{v.text} {v.ratio_text}".strip() for v in cells))
        yield part


def _strips(columns: list[dict]) -> list[Text]:
    seen = attentions_of(columns)
    widest = max(len(column["label"]) for column in columns)
    lines = []
    for column in columns:
        line = Text(f"{column['label']:{widest}}  ")
        for layer in column.get("layers", ())[:MAX_ROWS]:
            line.append(*strip_cell(seen.index(layer["attention"])))
        line.append(" ..." if len(column.get("layers", ())) > MAX_ROWS else "")
        lines.append(line if "layers" in column else line.append("failed", style="red"))
    legend = [
        Text(" " * (widest + 2)).append(*strip_cell(number)).append(f" {attention}")
        for number, attention in enumerate(seen)
    ]
    return [*lines, *legend]


def attentions_of(columns: list[dict]) -> list[str]:
    """`attentions` of all columns together, so that a letter and a colour mean the same in each."""
    return attentions(layer for column in columns for layer in column.get("layers", ()))
