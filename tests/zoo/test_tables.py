"""Lines and tables: put together here where standard output is no terminal, and the same text as rich's."""

import io
import random
import sys

import pytest
from rich.console import Console

from zoo import tables
from zoo.tables import Table, Text, has_colours, rendered, width_of

WORDS = ["", "a", "layer", "0-23", "3,342,560", "GLA, compression 16/16", "x" * 30, "two words", "  indented"]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


def by_rich(parts: list, width: int | None) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_plain_lines", lambda parts, width: None)
        return rendered(parts, width)


def random_table(draw: random.Random) -> Table:
    table = Table(*(draw.choice(WORDS) for _ in range(draw.randint(1, 5))))
    for column in table.columns:
        column.justify = draw.choice(["left", "right"])
        column.min_width = draw.choice([None, None, 4, 12])
        column.max_width = draw.choice([None, None, 20])
        column.no_wrap = draw.choice([False, True])
        column.overflow = draw.choice(["fold", "ellipsis"])
    for _ in range(draw.randint(0, 5)):
        cells = [draw.choice(WORDS) for _ in range(draw.randint(0, len(table.columns)))]
        table.add_row(*(Text(cell, "bold") if draw.random() < 0.2 else cell for cell in cells))
    return table


def random_text(draw: random.Random) -> Text:
    made = Text(draw.choice(WORDS), draw.choice(["", "dim"]))
    for _ in range(draw.randint(0, 3)):
        made.append(draw.choice([*WORDS, "\n", "caf\u00e9", "\u6ce8", "\t", "\x1b[31m"]), draw.choice(["", "bold"]))
    return made


def test_the_same_text_as_rich_where_everything_fits_and_where_it_does_not(no_terminal):
    draw, put_together = random.Random(0), 0
    for _ in range(300):
        made = [draw.choice([random_table, random_text])(draw) for _ in range(draw.randint(1, 3))]
        width = draw.choice([None, 20, 40, 80])
        put_together += tables._plain_lines(made, width or tables.WIDTH) is not None
        assert rendered(made, width) == by_rich(made, width)
    assert 60 < put_together < 240  # both ways were compared


def test_force_color_makes_a_terminal_of_a_pipe(no_terminal, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    assert (width_of(), has_colours()) == (40, True)
    assert "\x1b[1m" in rendered([Text("bold", "bold")], None)


def test_a_pipe_has_100_columns_and_no_colours(no_terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert (width_of(), has_colours()) == (100, False)
    assert rendered([Text.assemble(("A", "black on #E69F00")).append(" " * 98 + "B")], None) == f"A{' ' * 98}B\n"


def test_a_terminal_has_its_own_width_and_its_colours(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert (width_of(), has_colours()) == (40, True)
    table = Table("name", "text")
    table.add_row(Text("a", "bold"), "word " * 12)
    lines = rendered([table], None).splitlines()
    assert len(lines) == 3
    assert "\x1b[1ma" in lines[1]


def test_rich_can_print_both():
    console = Console(file=io.StringIO(), width=40)
    table = Table("name")
    table.add_row("one")
    console.print(Text("title"), table)
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == ["title", "name", "one"]


def test_a_row_longer_than_the_table_is_refused():
    with pytest.raises(ValueError, match="a row has 2 cells, and the table 1 columns"):
        Table("one").add_row("a", "b")
