"""The tables of a study's report, as text: what each architecture reached, its scores, what was equal. No torch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zoo.report.rows import binary, decimal
from zoo.study.verdicts import interval

NO_VALUE = "–"
_EQUAL = {True: "equal", False: "not equal", None: "open"}
_SCORES = {True: "score", False: "further scores, not decided"}


def all_notes(found: dict[str, Any]) -> list[str]:
    """What limits the conclusions, and what was measured."""
    return [*found["results"]["notes"], *found["measured"]["notes"]]


def tables(found: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(title, headings, rows) of each table; the title is the heading of the first column.

    Columns with a heading hold numbers; those without one hold words, and are aligned at the left.  A row with nothing
    but its first cell is the heading of the rows after it.
    """
    architectures = found["results"]["architectures"]
    yield "quality", *_quality(found)
    yield "cost", *_cost(found)
    yield "training speed", *_training_speed(found)
    if any(each["losses_of_choice"] for each in architectures):
        labels = list(architectures[0]["points"])
        rows = [[each["name"], *(_choice(each, label) for label in labels)] for each in architectures]
        yield "loss that chooses (* chosen)", ["", *labels], rows
    for primary in (True, False):
        if rows := list(_scores(architectures, primary)):
            yield _SCORES[primary], _score_head(primary), rows
    rows = [[row["what"], _EQUAL[row["equal"]], _shown(row)] for row in found["results"]["equal"]]
    yield "what was equal", ["", "", ""], rows


def _quality(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["", "loss", "bits per byte", "difference", "95% together"]
    rows = []
    for each in found["results"]["architectures"]:
        difference = each["difference"] or {}
        row = [each["name"], _mean(each["mean_loss"]), _mean(each["mean_bits_per_byte"])]
        rows.append([*row, f"{difference['value']:+.4f}" if difference else NO_VALUE, _bounds(difference)])
    return head, rows


def _cost(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["", "parameters", "KV cache", "speed-up in compute", "in time"]
    decodes = any(each["decoding"] for each in found["measured"]["architectures"].values())
    rows = []
    for each in found["results"]["architectures"]:
        measured = found["measured"]["architectures"][each["name"]]
        row = [each["name"], decimal(each["parameters"]), binary(each["cache_held_bytes"])]
        row += _speedups(each, measured, each["name"] in found["measured"]["comparison"]["not_comparable"])
        rows.append([*row, *([decoding_text(measured["decoding"])] if decodes else [])])
    return [*head, *(["decoding, tokens/s"] if decodes else [])], rows


def _training_speed(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Tokens a second alone, where that was measured, and in the runs, with how many of these shared a device."""
    measured = found["measured"]["architectures"]
    alone = any(each["alone"] for each in measured.values())
    rows = []
    for name in (each["name"] for each in found["results"]["architectures"]):
        each = measured[name]
        row = [name, *([_tokens((each["alone"] or {}).get("tokens_per_s"))] if alone else [])]
        rows.append([*row, _tokens(each["tokens_per_s"]), _sharing(each)])
    return ["", *(["alone, tokens/s"] if alone else []), "in the runs, tokens/s", "runs on their device"], rows


def _tokens(speed: float | None) -> str:
    return NO_VALUE if speed is None else f"{speed:,.0f}"


def _sharing(measured: dict) -> str:
    """How many runs were on the device of an architecture's runs, one number if it is that of all of them."""
    if measured["tokens_per_s"] is None:
        return NO_VALUE
    if measured["runs_on_device"] is None:
        return "not known"
    low, high = (f"{number:.1f}" for number in measured["runs_on_device"])
    return low if low == high else f"{low} to {high}"


def _mean(mean: dict | None) -> str:
    return NO_VALUE if mean is None else f"{mean['value']:.4f}{interval(mean['low'], mean['high'])}"


def _bounds(difference: dict) -> str:
    if difference.get("holm_low") is None:
        return NO_VALUE
    mark = "" if difference["decided"] else ", contains 0"
    return f"{difference['holm_low']:+.4f} to {difference['holm_high']:+.4f}{mark}"


def _speedups(each: dict, measured: dict, not_comparable: bool) -> list[str]:
    found = each["speedup"]
    if not found:
        return [NO_VALUE, NO_VALUE]
    time = measured["speedup_time"]
    in_time = "not comparable" if not_comparable else f"{time:.2f}x" if time else NO_VALUE
    low, high = found["low"], found["high"]
    bounds = "" if low is None else f" (at least {low:.2f})" if high is None else f" ({low:.2f} to {high:.2f})"
    if found["compute"] is None:
        farthest = math.floor(10 * found["more_than"]) / 10  # rounded up, it would not be true
        return [f"more than {farthest:g}x{bounds}", in_time]
    mark = " (extrapolated)" if found["extrapolated"] else ""
    return [f"{found['compute']:.2f}x{bounds}{mark}", in_time]


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
    if label not in each["losses_of_choice"]:
        return "waiting"
    loss = each["losses_of_choice"].get(label)
    return "no loss" if loss is None else f"{loss:.4f}{' *' if label == each['chosen'] else ''}"


def _score_head(primary: bool) -> list[str]:
    """Headings: the interval of a difference that is in no family is that of this difference alone."""
    return ["", "mean", "difference", "95% together" if primary else "95%, not corrected"]


def _scores(architectures: list[dict], primary: bool) -> Iterator[list[str]]:
    """Under the primary metric of each task, or under each of its other metrics, a row for each architecture."""
    for task, metrics in architectures[0]["scores"].items():
        for metric, numbers in metrics.items():
            if numbers["primary"] != primary:
                continue
            unit = _Unit(numbers["share"])
            chance = "" if numbers["chance"] is None else f", chance {unit.plain(numbers['chance'])}"
            name = f"{task}: {metric.replace('_', ' ')}{chance}"
            yield [name, "", "", ""]
            for each in architectures:
                yield [f"  {each['name']}", *_score(each["scores"][task][metric], unit)]


@dataclass(frozen=True)
class _Unit:
    """How a score is written: a share of 1 in per cent, and differences of it in points of a per cent."""

    share: bool

    def text(self, value: float, sign: str = "") -> str:
        return f"{100 * value:{sign}.1f}" if self.share else f"{value:{sign}.3f}"

    def plain(self, value: float) -> str:
        return f"{100 * value:.3g}%" if self.share else f"{value:.3g}"


def _score(found: dict, unit: _Unit) -> list[str]:
    """Mean, difference from the first architecture, interval of it; `better` or `worse` if it is decided."""
    mean, apart = found["mean"], found["difference"]
    if mean is None:
        return [NO_VALUE] * 3
    text = unit.text(mean["value"]) + "%" * unit.share
    if mean["low"] is not None:
        text += f" ({unit.text(mean['low'])} to {unit.text(mean['high'])})"
    if apart is None:
        return [text, NO_VALUE, NO_VALUE]
    signed = unit.text(apart["value"], "+") + " points" * unit.share
    low, high = ("holm_low", "holm_high") if found["primary"] else ("low", "high")
    if apart[low] is None:
        return [text, signed, NO_VALUE]
    bounds = f"{unit.text(apart[low], '+')} to {unit.text(apart[high], '+')}"
    return [text, signed, bounds + (_decision(found) if found["primary"] else "")]


def _decision(found: dict) -> str:
    if not found["difference"]["decided"]:
        return ", contains 0"
    higher = (found["difference"]["value"] > 0) == (found["better"] == "higher")
    return ", better" if higher else ", worse"


def _shown(row: dict) -> str:
    """The values of a row of the table of what was equal: once where they are, else each with its architectures."""
    names: dict[str, list[str]] = {}
    for name, value in row["values"].items():
        names.setdefault(_value(value), []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{', '.join(each)}: {text}" for text, each in names.items())


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
