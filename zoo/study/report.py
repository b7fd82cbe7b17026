"""The report of a study: for the terminal, as Markdown, and as files in the study's folder (page.py makes the page)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.text import Text

from zoo.files import write_json, write_text
from zoo.report.rows import binary, decimal
from zoo.show import plain_table, rendered
from zoo.study.expand import Runs
from zoo.study.findings import findings, interval
from zoo.study.runner import Runner
from zoo.study.slots import Slots
from zoo.study.state import StudyFolder

STYLES = {"better": "green", "worse": "red", "undecided": "yellow", "missing": "yellow"}
NO_VALUE = "–"


def write_report(runs: Runs, folder: StudyFolder, command: str | None, html: Path | None = None) -> dict[str, Any]:
    """Write results.json, measured.json, report.md and report.html; returns {"results", "measured"}.

    command: that of the study, for the page.  html: another place of the page.
    """
    from zoo.study.page import as_page

    found = findings(Runner(runs, folder, Slots(1)))
    write_json(folder.path / "results.json", found["results"])
    write_json(folder.path / "measured.json", found["measured"])
    write_text(folder.path / "report.md", as_markdown(found))
    write_text(html or folder.path / "report.html", as_page(found, runs, folder, command))
    return found


def as_text(found: dict[str, Any], width: int | None = None) -> str:
    """The report for a terminal: verdicts first."""
    results = found["results"]
    parts: list = [Text(f"{results['study']}  {results['summary']}".rstrip(), style="bold"), Text()]
    parts += [Text(each["sentence"], style=STYLES.get(each["outcome"], "")) for each in results["verdicts"]]
    parts += [Text(), *(Text(f"note: {note}") for note in results["notes"]), Text()]
    for title, head, lines in tables(found):
        table = plain_table(title, *head[1:])
        for column in table.columns[1:]:
            column.justify = "right"
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
    lines += ["", *(f"- Note: {note}" for note in results["notes"])]
    for title, head, rows in tables(found):
        lines += ["", f"| {title} | {' | '.join(map(_cell, head[1:]))} |", f"|---|{'---:|' * (len(head) - 1)}"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([*lines, "", results["about"], ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def tables(found: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(title, headings, rows) of each table; the title is the heading of the first column."""
    architectures = found["results"]["architectures"]
    yield "architecture", *_main_table(found)
    if any(each["losses_of_choice"] for each in architectures):
        labels = list(next(each["losses_of_choice"] for each in architectures if each["losses_of_choice"]))
        rows = [[each["name"], *(_choice(each, label) for label in labels)] for each in architectures]
        yield "loss that chose (* chosen)", ["", *labels], rows
    if any(each["scores"] for each in architectures):
        yield "score", *_score_table(architectures)
    rows = [[row["what"], "equal" if row["equal"] else "not equal", *_shown(row)] for row in found["results"]["equal"]]
    yield "what was equal", ["", "", *(each["name"] for each in architectures)], rows


def _main_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["", "loss", "bits per byte", "difference", "95% together", "parameters", "KV cache", "tokens/s"]
    head += ["speed-up: compute", "time"]
    decodes = any(each["decoding"] for each in found["measured"]["architectures"].values())
    rows = []
    for each in found["results"]["architectures"]:
        measured = found["measured"]["architectures"][each["name"]]
        difference = each["difference"] or {}
        row = [each["name"], _mean(each["mean_loss"]), _mean(each["mean_bits_per_byte"])]
        row += [f"{difference['value']:+.4f}" if difference else NO_VALUE, _bounds(difference)]
        row += [decimal(each["parameters"]), binary(each["cache_held_bytes"])]
        row += [
            f"{measured['tokens_per_s']:,.0f}" if measured["tokens_per_s"] else NO_VALUE,
            *_speedups(each, measured),
        ]
        rows.append([*row, *([decoding_text(measured["decoding"])] if decodes else [])])
    return [*head, *(["decoding, tokens/s"] if decodes else [])], rows


def _mean(mean: dict | None) -> str:
    return NO_VALUE if mean is None else f"{mean['value']:.4f}{interval(mean['low'], mean['high'])}"


def _bounds(difference: dict) -> str:
    if difference.get("holm_low") is None:
        return NO_VALUE
    mark = "" if difference["decided"] else ", contains 0"
    return f"{difference['holm_low']:+.4f} to {difference['holm_high']:+.4f}{mark}"


def _speedups(each: dict, measured: dict) -> list[str]:
    found = each["speedup"]
    if not found or found["compute"] is None:
        return [NO_VALUE, NO_VALUE]
    mark = " (extrapolated)" if found["extrapolated"] else ""
    bounds = f" ({found['low']:.2f} to {found['high']:.2f})" if found["low"] and found["high"] else ""
    time = measured["speedup_time"]
    return [f"{found['compute']:.2f}x{bounds}{mark}", f"{time:.2f}x" if time else NO_VALUE]


def decoding_text(rows: list[dict]) -> str:
    """Tokens a second of the first measurement that worked, with its context and batch."""
    usable = [row for row in rows if not row.get("skipped")]
    if not usable:
        return NO_VALUE
    row = usable[0]
    return f"{tokens_per_s(row):,.0f} at {row['batch']} x {row['context']:,}"


def tokens_per_s(row: dict) -> float:
    """Decoded tokens a second of a row of `zoo bench decode`."""
    return 1000 * row["batch"] / row["decode_ms"]


def _choice(each: dict, label: str) -> str:
    loss = each["losses_of_choice"].get(label)
    return "no loss" if loss is None else f"{loss:.4f}{' *' if label == each['chosen'] else ''}"


def _score_table(architectures: list[dict]) -> tuple[list[str], list[list[str]]]:
    first = architectures[0]
    rows = []
    for task, metrics in first["scores"].items():
        for metric, numbers in metrics.items():
            unit = 100 if numbers["share"] else 1
            chance = (
                "" if numbers["chance"] is None else f", chance {unit * numbers['chance']:.3g}{'%' * (unit == 100)}"
            )
            cells = [_score(each["scores"].get(task, {}).get(metric), unit) for each in architectures]
            rows.append([f"{task}: {metric}{chance}", *cells])
    return ["", *(each["name"] for each in architectures)], rows


def _score(found: dict | None, unit: int) -> str:
    """`53.1% (50.0 to 56.2) +`: + and - say that the difference from the first architecture is decided, = that not."""
    if not found or not found["mean"]:
        return NO_VALUE
    mean, digits = found["mean"], 1 if unit == 100 else 3
    text = f"{unit * mean['value']:.{digits}f}{'%' * (unit == 100)}"
    if mean["low"] is not None:
        text += interval(unit * mean["low"], unit * mean["high"], digits)
    difference = found["difference"]
    if difference is None:
        return text
    if not difference["decided"]:
        return f"{text} ="
    higher = (difference["value"] > 0) == (found["better"] == "higher")
    return f"{text} {'better' if higher else 'worse'}"


def _shown(row: dict) -> list[str]:
    """The values of a row of the table of what was equal: once where they are."""
    texts = [_value(value) for value in row["values"].values()]
    if len(set(texts)) == 1:
        return [texts[0], *[""] * (len(texts) - 1)]
    return texts


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
    if isinstance(value, dict):
        said = ", ".join(f"{key}: {_value(item)}" for key, item in value.items() if item is not None)
        return said if len(said) <= 90 else f"{said[:86]} ..."
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return str(value)
