"""Tables for the terminal at hand. No torch."""

import io
from collections.abc import Iterable
from typing import Any, cast

from rich.console import Console, Group
from rich.table import Table

from zoo.terminal import cleaned


def plain_table(*headings: str) -> Table:
    """A table without lines, with a column for each heading."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading)
    return table


def has_colours() -> bool:
    """Whether standard output is a terminal that shows colours."""
    terminal = Console()
    return terminal.is_terminal and terminal.color_system is not None and not terminal.no_color


def width_of() -> int:
    """Characters of a line of the terminal at hand; 100 where there is none."""
    terminal = Console()
    return terminal.width if terminal.is_terminal else 100


def rendered(parts: Iterable, width: int | None) -> str:
    """Text for the terminal at hand: colours only if it shows them; 100 columns where there is no terminal."""
    terminal = Console()
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
