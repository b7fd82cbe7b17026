"""`zoo compare`: reads the columns, trains and measures them if asked, and writes what it found."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import Problem, RecipeError
from zoo.json_text import json_text
from zoo.report.columns import FEWEST, MOST, Column, load_columns, with_duration
from zoo.report.facts import comparison, distinct_blocks
from zoo.report.measure import measure_column
from zoo.report.notes import comparable_score
from zoo.report.rows import rows
from zoo.report.seeds import grouped
from zoo.report.text import as_text
from zoo.report.training import train_columns


@dataclass(frozen=True)
class Request:
    """What the user asked for; see the options of `zoo compare`."""

    sources: Sequence[str]
    overrides: Sequence[str] = ()
    seq_lens: Sequence[int] = ()
    html: Path | None = None
    json: bool = False
    maps: bool = True
    train: str | None = None
    runs_dir: Path = Path("runs/compare")
    measure: bool = False
    short: bool = False
    called: str | None = None
    places: Mapping[str, str] | None = None  # of sources whose path says nothing to the user

    @property
    def command(self) -> str:
        """What repeats the comparison: the command line, or `called` of a caller that is none."""
        if self.called is not None:
            return self.called
        words = ["zoo", "compare", *self.sources]
        words += [word for override in self.overrides for word in ("--set", override)]
        words += [word for length in self.seq_lens for word in ("--seq-len", str(length))]
        words += ["--train", self.train, "--runs-dir", str(self.runs_dir)] if self.train else []
        words += [option for option, on in (("--measure", self.measure), ("--no-maps", not self.maps)) if on]
        words += ["--html", str(self.html)] if self.html else []
        return shlex.join(map(str, words))


def compare(request: Request) -> str:
    """Compare the recipes and runs; writes the page if asked for, and returns the text (or JSON) to print.

    Raises RecipeError if there are not 2 to 10 columns. A column that fails has its reason and leaves the others.
    """
    columns, found = find(request)
    write(request, columns, found)
    if request.json:
        return as_json(found)
    return as_text(found, short=request.short) + (f"page: {request.html}\n" if request.html else "")


def find(request: Request) -> tuple[list[Column], dict[str, Any]]:
    """The columns, trained and measured if asked, and everything that is known of them; raises as `compare`."""
    if not FEWEST <= len(request.sources) <= MOST:
        found = f"must name {FEWEST} to {MOST} recipes or runs; found {len(request.sources)}"
        raise RecipeError([Problem(found, key="zoo compare")])
    check_folder(request.html, "--html")
    columns = load_columns(request.sources, request.overrides, request.train, request.places)
    _refuse_if_all_failed(columns)
    if request.train:
        columns = train_columns(columns, request.runs_dir, with_duration(request.overrides, request.train))
    columns = grouped(columns)
    measured: list[dict[str, Any] | None] = [None] * len(columns)
    if request.measure:
        length = next(iter(request.seq_lens), None) or shortest(columns)
        pairs = [measure_column(column, length, request.overrides) for column in columns]
        columns, measured = [column for column, _ in pairs], [numbers for _, numbers in pairs]
    facts = comparison(columns, request.seq_lens, measured)
    if not any("parameters" in known for known in facts["columns"]):
        raise RecipeError([Problem(f"{known['label']}: {known['error']}") for known in facts["columns"]])
    return columns, facts


def write(request: Request, columns: Sequence[Column], found: dict[str, Any]) -> None:
    """Write the page if it was asked for."""
    if request.html is not None:
        write_page(request, columns, found)


def shortest(columns: Sequence[Column]) -> int:
    """The shortest max_seq_len, which every column was made for: speeds compare at one length."""
    return min(column.recipe.model.max_seq_len for column in columns if column.recipe)


def check_folder(path: Path | None, option: str) -> None:
    """Raise RecipeError if a file cannot be written there, before hours of training end in that error."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        found = "a folder" if path.is_dir() else f"no folder {path.parent}"
        raise RecipeError([Problem(f"must name a file in a folder that exists; found {found}", key=option)])


def _refuse_if_all_failed(columns: Sequence[Column]) -> None:
    if all(column.error for column in columns):
        raise RecipeError([Problem(f"{column.label}: {column.error}") for column in columns])


def write_page(request: Request, columns: Sequence[Column], found: dict[str, Any]) -> None:
    """The HTML page; matplotlib is imported for its plots, torch for attention maps."""
    from zoo.files import write_text
    from zoo.report.cost_plots import cost_plots, loss_against_cache
    from zoo.report.curves import curves
    from zoo.report.origin import origin
    from zoo.report.page import Drawings, as_page

    facts, lengths = found["columns"], found["seq_lens"]
    drawn = Drawings(
        curves=curves(facts),
        log_curves=curves(facts, log=True),
        trade_off=loss_against_cache(facts, lengths, comparable_score(columns, facts)),
        costs=cost_plots(columns, facts, lengths),
        maps=_maps(columns, facts) if request.maps else None,
        origin=origin(columns, request.command),
    )
    assert request.html is not None
    write_text(request.html, as_page(found, drawn))


def _maps(columns: Sequence[Column], facts: Sequence[dict[str, Any]]) -> tuple[int, list[tuple[str, str]]]:
    """(tokens, (caption, SVG) of each block that differs from the others in what a query sees)."""
    from zoo.report.maps import common_length, thumbnail

    blocks = distinct_blocks(columns, facts)
    length = common_length(block for _, _, block in blocks)
    return length, [
        (f"{kind}: {about}", thumbnail(*block, seq_len=length, titled=False)) for kind, about, block in blocks
    ]


def as_json(found: dict[str, Any]) -> str:
    """The comparison as JSON text, with the facts, the table's rows and their ratios."""
    table = [
        {
            "group": row.group,
            "label": row.label,
            "values": [None if value is None else value.number for value in row.values],
            "ratios": [None if value is None else value.ratio for value in row.values],
            "texts": [None if value is None else value.text for value in row.values],
        }
        for row in rows(found)
    ]
    return json_text({**found, "rows": table})
