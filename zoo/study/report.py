"""The report of a study: for the terminal, as Markdown, and as files in the study's folder (page.py makes the page)."""

from pathlib import Path
from typing import Any

from zoo.files import write_text
from zoo.json_text import json_text
from zoo.study.expand import Runs
from zoo.study.findings import findings
from zoo.study.results import refuse_other_data
from zoo.study.runner import Runner
from zoo.study.slots import Slots
from zoo.study.state import DONE, StudyFolder, refuse_other_settings
from zoo.study.tables import all_notes, tables
from zoo.tables import Table, Text, rendered

STYLES = {"better": "green", "worse": "red", "undecided": "yellow", "missing": "yellow"}


def read_findings(runs: Runs, folder: StudyFolder, against: str | None = None) -> dict[str, Any]:
    """The `findings` of the runs in a folder, from which nothing is started.

    Raises OtherSettings if there are runs that the study file does not describe, StudyError if their rows differ.
    """
    runner = Runner(runs, folder, Slots(1), scored=False)
    refuse_other_settings(folder, runner.all())
    refuse_other_data(folder, [(run, runner.rows(run)) for run in runner.all() if runner.state(run).name == DONE])
    return findings(runner, against)


def write_report(
    runs: Runs, folder: StudyFolder, html: Path | None = None, against: str | None = None
) -> dict[str, Any]:
    """Write results.json, measured.json, report.md and report.html; returns {"results", "measured"}.

    html: another place of the page.  against: see `findings`.
    Raises OtherSettings if there are runs that the study file does not describe.
    """
    from zoo.study.page import as_page

    found = read_findings(runs, folder, against)
    write_text(folder.path / "results.json", json_text(found["results"], indent=1))
    write_text(folder.path / "measured.json", json_text(found["measured"], indent=1))
    write_text(folder.path / "report.md", as_markdown(found))
    write_text(html or folder.path / "report.html", as_page(found, runs, folder))
    return found


def as_text(found: dict[str, Any], width: int | None = None) -> str:
    """The report for a terminal: verdicts first."""
    results = found["results"]
    parts: list = [Text(f"{results['study']}  {results['summary']}".rstrip(), style="bold"), Text()]
    parts += [Text(each["sentence"], style=STYLES.get(each["outcome"], "")) for each in results["verdicts"]]
    parts += [Text(), *(Text(f"note: {note}") for note in all_notes(found)), Text()]
    for title, head, lines in tables(found):
        table = Table(title, *head[1:])
        for column, heading in zip(table.columns[1:], head[1:], strict=True):
            column.justify = "right" if heading else "left"
        for line in lines:
            table.add_row(*line)
        parts += [table, Text()]
    parts += [Text(results["about"], style="dim")]
    return rendered(parts, width)


def as_markdown(found: dict[str, Any]) -> str:
    """Verdicts and tables as Markdown, to paste into a paper."""
    results = found["results"]
    lines = [f"**{results['study']}** {results['summary']}".rstrip(), ""]
    lines += [f"- {each['sentence']}" for each in results["verdicts"]]
    lines += ["", *(f"- Note: {note}" for note in all_notes(found))]
    for title, head, rows in tables(found):
        ruler = "".join("---:|" if heading else "---|" for heading in head[1:])
        lines += ["", f"| {title} | {' | '.join(map(_cell, head[1:]))} |", f"|---|{ruler}"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([*lines, "", results["about"], ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
