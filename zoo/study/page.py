"""The report of a study as one HTML page that needs nothing else: verdicts, drawings, tables, recipes. No torch."""

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

from zoo import __version__
from zoo.report.html import details, document, escape, legend, notes, scrolled
from zoo.study.expand import Runs
from zoo.study.state import StudyFolder
from zoo.study.tables import all_notes, tables

BANDS = (
    "Lines are means over the seeds that count. Bands reach from the lowest to the highest seed, bars are 95% "
    "intervals. A click on a name hides it in all drawings."
)


def as_page(found: dict[str, Any], runs: Runs, folder: StudyFolder) -> str:
    """The page of `findings`."""
    from zoo.study.plots import drawings  # imports matplotlib

    results = found["results"]
    body = [
        f"<h1>{escape(results['study'])}</h1>",
        f"<p>{escape(results['summary'])}</p>" if results["summary"] else "",
        f"<p class=dim>Made by zoo study, attention-zoo {__version__}.</p>",
        _verdicts(results["verdicts"]),
        notes(all_notes(found), "What limits these conclusions"),
        f"<p class=dim>{escape(results['about'])}</p>",
        *_sections(found, drawings(found)),
        *_origin(found, runs, folder),
    ]
    style = resources.files("zoo.study").joinpath("page.css").read_text(encoding="utf-8")
    return document(results["study"], "\n".join(body), style)


def _verdicts(verdicts: list[dict[str, Any]]) -> str:
    lines = (f'<li class="{each["outcome"]}">{escape(each["sentence"])}</li>' for each in verdicts)
    return f"<ul class=verdicts>{''.join(lines)}</ul>"


def _sections(found: dict[str, Any], drawn: dict[str, list[tuple[str, str]]]) -> Iterator[str]:
    if drawn:
        yield f"<p class=dim>{BANDS}</p>"
        yield legend({n: each["name"] for n, each in enumerate(found["results"]["architectures"])})
    for heading, figures in drawn.items():
        yield f"<h2>{escape(heading)}</h2>"
        shown = (f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for caption, svg in figures)
        yield f"<div class=figures>{''.join(shown)}</div>"
    yield "<h2>Numbers</h2>"
    for title, head, rows in tables(found):
        yield _table(title, head, rows)


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    heads = "".join(f"<th scope=col>{escape(each)}</th>" for each in [title, *head[1:]])
    lines = "".join(_row(row, head) for row in rows)
    return scrolled(f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>")


def _row(row: list[str], head: list[str]) -> str:
    name, *texts = row
    if not any(texts):
        return f"<tr class=group><th scope=rowgroup colspan={len(row)}><span>{_breakable(name)}</span></th></tr>"
    cells = (_cell(text, bool(heading)) for text, heading in zip(texts, head[1:], strict=True))
    return f"<tr><th scope=row>{_breakable(name.strip())}</th>{''.join(cells)}</tr>"


def _breakable(name: str) -> str:
    """A name that a narrow window breaks at its underscores, not in the middle of a word."""
    return escape(name).replace("_", "_<wbr>")


def _cell(text: str, of_numbers: bool) -> str:
    kind = ' class="unequal"' if text == "not equal" else "" if of_numbers else ' class="text"'
    return f"<td{kind}>{escape(text)}</td>"


def _origin(found: dict[str, Any], runs: Runs, folder: StudyFolder) -> Iterator[str]:
    """Machines, versions, commands and files: what a repetition needs."""
    yield "<h2>Where these numbers come from</h2>"
    yield f"<p>Command: <code>{escape(runs.study.command())}</code></p>"
    machines = found["measured"]["machines"]
    for number, machine in enumerate(machines, start=1):
        which = f"Machine and versions{f' {number} of {len(machines)}' if len(machines) > 1 else ''}"
        yield details(which, json.dumps(machine, indent=2))
    yield details("Study", runs.study.path.read_text(encoding="utf-8"))
    for change in found["results"]["matched"]:
        yield f"<p class=dim>Matched: {escape(change)}</p>"
    for each in found["results"]["architectures"]:
        label = each["chosen"] if each["chosen"] is not None else runs.points[0].label
        recipe = runs.recipes[each["name"], label]
        at = f" at {label}" if each["chosen"] else ""
        yield details(f"Recipe of {each['name']}{at}, from {each['recipe']}", recipe.dump())
    failed = [run for each in found["results"]["architectures"] for run in each["runs"] if run.get("why")]
    for run in failed:
        yield details(f"{run['run']} {run['state']}; log: {folder.logs / run['run']}.txt", run["why"])
