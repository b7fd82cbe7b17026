"""Lines and tables for the terminal at hand. No torch, and rich only where something has to be coloured or folded.

Importing rich and laying out a table with it take a fifth of the time of `zoo show`. Where standard output is no
terminal and everything fits its line, the same text is put together here.
"""

import io
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from zoo.terminal import cleaned

if TYPE_CHECKING:
    import rich.table
    import rich.text

WIDTH = 100  # characters of a line where there is no terminal
GAP = 2  # between the columns of a table


class Text:
    """Pieces of text, each with a style of rich ("bold", "black on #E69F00"); rich can print it."""

    def __init__(self, text: str = "", style: str = ""):
        self.style = style
        self.pieces: list[tuple[str, str]] = [(text, "")]

    @classmethod
    def assemble(cls, *pieces: tuple[str, str]) -> "Text":
        """The pieces, each (text, style), one after the other."""
        return cls().append_tokens(pieces)

    def append(self, text: str, style: str = "") -> "Text":
        """Add a piece; returns this text."""
        self.pieces.append((text, style))
        return self

    def append_tokens(self, pieces: Iterable[tuple[str, str]]) -> "Text":
        """Add pieces, each (text, style); returns this text."""
        self.pieces += pieces
        return self

    @property
    def plain(self) -> str:
        """The text without its styles."""
        return "".join(text for text, _ in self.pieces)

    def __rich__(self) -> "rich.text.Text":
        from rich.text import Text as RichText

        return RichText(style=self.style).append_tokens((text, style or None) for text, style in self.pieces)


@dataclass
class Column:
    """A column of a table; widths in characters."""

    heading: str
    justify: Literal["left", "right"] = "left"
    min_width: int | None = None
    max_width: int | None = None
    no_wrap: bool = False
    overflow: Literal["fold", "ellipsis"] = "ellipsis"


class Table:
    """A table without lines; rich can print it."""

    def __init__(self, *headings: str):
        self.columns = [Column(heading) for heading in headings]
        self.rows: list[tuple[str | Text, ...]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Add a row; the cells of the last columns may be missing."""
        if len(cells) > len(self.columns):
            raise ValueError(f"a row has {len(cells)} cells, and the table {len(self.columns)} columns")
        self.rows.append(cells)

    def plain_lines(self, width: int) -> list[str] | None:
        """The lines without styles; None if a cell has to be folded to fit `width` characters."""
        cells = [[column.heading for column in self.columns], *(list(map(_plain, row)) for row in self.rows)]
        widths = [max(len(row[at]) for row in cells if at < len(row)) for at in range(len(self.columns))]
        if any(column.max_width is not None and column.max_width < n for column, n in self._with(widths)):
            return None
        least = [column.min_width or 0 for column in self.columns]
        if least[-1]:
            least[-1] += GAP  # as rich does, although nothing follows the last column
        widths = list(map(max, widths, least))
        if sum(widths) + GAP * (len(widths) - 1) > width or not all(_simple(cell) for row in cells for cell in row):
            return None
        return [(" " * GAP).join(self._padded(row, widths)) for row in cells]

    def _with(self, widths: Sequence[int]) -> Iterable[tuple[Column, int]]:
        return zip(self.columns, widths, strict=True)

    def _padded(self, row: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
        for cell, (column, width) in zip(row, self._with(widths), strict=False):
            yield cell.rjust(width) if column.justify == "right" else cell.ljust(width)

    def __rich__(self) -> "rich.table.Table":
        from rich.table import Table as RichTable

        table = RichTable(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
        for column in self.columns:
            table.add_column(
                column.heading,
                justify=column.justify,
                min_width=column.min_width,
                max_width=column.max_width,
                no_wrap=column.no_wrap,
                overflow=column.overflow,
            )
        for row in self.rows:
            table.add_row(*(cell.__rich__() if isinstance(cell, Text) else cell for cell in row))
        return table


def has_colours() -> bool:
    """Whether standard output is a terminal that shows colours."""
    if _is_no_terminal():
        return False
    terminal = _terminal()
    return terminal.is_terminal and terminal.color_system is not None and not terminal.no_color


def width_of() -> int:
    """Characters of a line of the terminal at hand; 100 where there is none."""
    if _is_no_terminal():
        return WIDTH
    terminal = _terminal()
    return terminal.width if terminal.is_terminal else WIDTH


def rendered(parts: Iterable[Text | Table], width: int | None) -> str:
    """Text for the terminal at hand: colours only if it shows them; 100 columns where there is no terminal."""
    parts = list(parts)
    if _is_no_terminal() and (lines := _plain_lines(parts, width or WIDTH)) is not None:
        return "\n".join(line.rstrip() for line in lines) + "\n"
    from rich.console import Console, Group

    terminal = _terminal()
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=width or width_of(),
        force_terminal=terminal.is_terminal,
        color_system=cast(Any, terminal.color_system),
        no_color=terminal.no_color,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(cleaned(Group(*parts), console), end="")
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _plain_lines(parts: Sequence[Text | Table], width: int) -> list[str] | None:
    found: list[str] = []
    for part in parts:
        lines = part.plain_lines(width) if isinstance(part, Table) else part.plain.split("\n")
        if lines is None or not all(len(line) <= width and _simple(line) for line in lines):
            return None
        found += lines
    return found


def _simple(text: str) -> bool:
    """Whether every character takes one place of a line and is shown as it is."""
    return text.isascii() and text.isprintable()


def _plain(cell: str | Text) -> str:
    return cell if isinstance(cell, str) else cell.plain


def _is_no_terminal() -> bool:
    """Whether standard output is no terminal, to rich either: FORCE_COLOR would ask for colours all the same."""
    if "FORCE_COLOR" in os.environ:
        return False
    isatty = getattr(sys.stdout, "isatty", None)
    return isatty is not None and not isatty()


def _terminal() -> Any:
    from rich.console import Console

    return Console()
