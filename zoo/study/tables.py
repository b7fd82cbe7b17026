"""The tables of a study's report, as text: what each architecture reached, its scores, what was equal. No torch."""

from collections.abc import Iterator
from typing import Any

from zoo.report.rows import binary, decimal
from zoo.study.verdicts import interval

NO_VALUE = "–"


def tables(found: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(title, headings, rows) of each table; the title is the heading of the first column."""
    architectures = found["results"]["architectures"]
    yield "quality", *_quality(found)
    yield "cost", *_cost(found)
    if any(each["losses_of_choice"] for each in architectures):
        labels = list(next(each["losses_of_choice"] for each in architectures if each["losses_of_choice"]))
        rows = [[each["name"], *(_choice(each, label) for label in labels)] for each in architectures]
        yield "loss that chose (* chosen)", ["", *labels], rows
    if any(each["scores"] for each in architectures):
        yield "score", *_score_table(architectures)
    rows = [[row["what"], "equal" if row["equal"] else "not equal", *_shown(row)] for row in found["results"]["equal"]]
    yield "what was equal", ["", "", *(each["name"] for each in architectures)], rows


def _quality(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["", "loss", "bits per byte", "difference", "95% together"]
    rows = []
    for each in found["results"]["architectures"]:
        difference = each["difference"] or {}
        row = [each["name"], _mean(each["mean_loss"]), _mean(each["mean_bits_per_byte"])]
        rows.append([*row, f"{difference['value']:+.4f}" if difference else NO_VALUE, _bounds(difference)])
    return head, rows


def _cost(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["", "parameters", "KV cache", "training tokens/s", "speed-up in compute", "in time"]
    decodes = any(each["decoding"] for each in found["measured"]["architectures"].values())
    rows = []
    for each in found["results"]["architectures"]:
        measured = found["measured"]["architectures"][each["name"]]
        speed = f"{measured['tokens_per_s']:,.0f}" if measured["tokens_per_s"] else NO_VALUE
        row = [each["name"], decimal(each["parameters"]), binary(each["cache_held_bytes"]), speed]
        row += _speedups(each, measured)
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
    """`53.1% (50.0 to 56.2) better`: compared with the first architecture; `=` if the difference is undecided."""
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
        if isinstance(value, float) and value >= 1e6:
            return decimal(value)
        return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
    if isinstance(value, dict):
        said = ", ".join(f"{key}: {_value(item)}" for key, item in value.items() if item not in (None, {}, []))
        return said if len(said) <= 90 else f"{said[:86]} ..."
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return str(value)
