"""The rows of a comparison, one value a column, as the terminal and the page both show them. No torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any

from zoo.report.settings import differing

SETTINGS = "settings that differ"


@dataclass(frozen=True)
class Value:
    """A cell: the number it is sorted by (None: nothing to sort), its text, its ratio to the first column."""

    number: float | None
    text: str
    ratio: float | None = None

    @property
    def ratio_text(self) -> str:
        if self.ratio is None:
            return ""
        if 0 < self.ratio < 0.095:  # two digits of a small one: a cache of a hundredth is not one of nothing
            return f"×{self.ratio:.2g}"
        return f"×{self.ratio:.2f}" if self.ratio < 100 else f"×{self.ratio:,.0f}"


@dataclass(frozen=True)
class Row:
    """A line of the table: its group, its label, and a value for each column, None where there is none."""

    group: str
    label: str
    values: list[Value | None]


def rows(found: dict[str, Any]) -> list[Row]:
    """Every row of a comparison (`facts.comparison`) that has a value in some column."""
    made = [_row(found["columns"], *spec) for spec in _specs(found)]
    return [row for row in made if any(value is not None for value in row.values)]


Read = Callable[[dict], Any]


def _of(*path: str) -> Read:
    """Read a value that every column has, at this path."""
    return lambda column: reduce(getitem, path, column)


def _specs(found: dict[str, Any]) -> Iterator[tuple[str, str, Read, Callable[[Any], str], bool]]:
    """(group, label, value of a column, its text, whether ratios make sense) of each row."""
    yield from _TRAINED
    yield from _evaluated(found)
    for name in differing(found["columns"]):
        yield SETTINGS, name, _of("settings", name), str, False
    counts = [column["parameters"] for column in found["columns"] if "parameters" in column]
    for part in ("embedding", "attention", "ffn", "norms", "head"):
        yield "parameters", part, _of("parameters", part), decimal, True
    if any("multi_token" in count for count in counts):
        yield "parameters", "multi_token", lambda c: c["parameters"].get("multi_token", 0), decimal, True
    yield "parameters", "total", _of("parameters", "total"), decimal, True
    if any(c["active_parameters"] != c["parameters"]["total"] for c in found["columns"] if "parameters" in c):
        yield "parameters", "active, of one token", lambda c: c["active_parameters"], decimal, True
    for length in map(str, found["seq_lens"]):
        yield "forward FLOPs per token", _at(length), _of("flops_per_token", length), decimal, True
    for length in map(str, found["seq_lens"]):
        yield "attention's share of them", _at(length), _of("attention_share", length), percent, False
    yield "cache of one row, bf16", "nominal, a token", lambda c: c["cache"]["nominal_bytes_per_token"], binary, True
    for name, shown in (("nominal", "nominal"), ("held", "allocated")):
        for length in map(str, found["seq_lens"]):
            read = _of("cache", f"{name}_bytes", length)
            yield "cache of one row, bf16", f"{shown}, {int(length):,} tokens", read, binary, True
    yield from _cache_by_kind(found)
    for length in map(str, found["seq_lens"]):
        yield "layers to cross the row", _at(length), _of("receptive_field", length), _reach, False
    yield from _measured(found)


def _cache_by_kind(found: dict[str, Any]) -> Iterator[tuple[str, str, Read, Callable[[Any], str], bool]]:
    """Bytes per token of all layers of a kind, for the kinds of any column; a ratio where the first column has it."""
    caches = [column["cache"]["by_kind"] for column in found["columns"] if "cache" in column]
    group, length = "cache a token, by kind of layer", str(found["seq_lens"][0])
    for kind in dict.fromkeys(kind for by_kind in caches for kind in by_kind):
        yield group, f"{kind}, nominal", _part("cache", "by_kind", kind, "nominal_bytes_per_token"), binary, True
        held = _part("cache", "by_kind", kind, "held_bytes_per_token", length)
        yield group, f"{kind}, allocated {_at(length).removesuffix(' tokens')}", held, binary, True


def _evaluated(found: dict[str, Any]) -> Iterator[tuple[str, str, Read, Callable[[Any], str], bool]]:
    """The scores of the runs that were evaluated, with the half width of the 95% interval and the chance level."""
    scores = [(column.get("run") or {}).get("evaluation") or {} for column in found["columns"]]
    for task in dict.fromkeys(task for one in scores for task in one):
        known = next(one[task] for one in scores if task in one)
        for metric, numbers in known.items():
            show = percent if numbers["share"] else _score
            chance = "" if numbers["chance"] is None else f", chance {show(numbers['chance'])}"
            label = f"{task}: {metric}{chance}"
            yield "scores, with the 95% interval", label, _part("run", "evaluation", task, metric), _interval, False


def _interval(numbers: dict[str, Any]) -> str:
    """`53.1% ±2.9`: the value, and half the width of its 95% interval in the same unit."""
    show, unit = (percent, 100) if numbers["share"] else (_score, 1)
    if numbers["low"] is None:
        return show(numbers["value"])
    half = unit * (numbers["high"] - numbers["low"]) / 2
    return f"{show(numbers['value'])} ±{half:.1f}" if numbers["share"] else f"{show(numbers['value'])} ±{half:.3f}"


def _score(value: float) -> str:
    return f"{value:.3f}"


def _part(section: str, *path: str) -> Read:
    """Read a value below an optional section of a column; None where it, or something on the way, is missing."""

    def read(column: dict) -> Any:
        value = column.get(section)
        for name in path:
            value = value.get(name) if value is not None else None
        return value

    return read


def _row(columns: list[dict], group: str, label: str, read: Read, text, compared: bool) -> Row:
    found = [None if column["error"] and "parameters" not in column else read(column) for column in columns]
    numbers = [_number(value) for value in found]
    base = numbers[0] if compared else None
    values = [
        None if value is None else Value(number, text(value), number / base if base and number is not None else None)
        for value, number in zip(found, numbers, strict=True)
    ]
    return Row(group, label, values)


def _number(value: Any) -> float | None:
    """What a value is sorted by: of a reach the layers, of a score its value; None of text."""
    if isinstance(value, str):
        return None
    if isinstance(value, dict):
        return value["layers"] if "layers" in value else value["value"]
    return value


def _at(length: str) -> str:
    return f"at {int(length):,} tokens"


def _reach(found: dict[str, Any]) -> str:
    return found["text"]


def _scaled(number: float, base: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(number) >= base * 0.9995 and power < len(units) - 1:
        number, power = number / base, power + 1
    if power == 0 and number == int(number):
        return f"{number:,.0f}{units[0]}"
    digits = 0 if abs(number) >= 1000 else 1 if abs(number) >= 100 else 2
    return f"{number:,.{digits}f}{units[power]}"


def decimal(number: float) -> str:
    """336,100,000 -> `336.1M`."""
    return _scaled(number, 1000, ("", "K", "M", "B", "T", "P", "E"))


def binary(number: float) -> str:
    """Bytes in KiB, MiB, ..."""
    return _scaled(number, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def percent(share: float) -> str:
    """`12.3%`."""
    return f"{share:.1%}"


def _loss(value: float | dict[str, Any]) -> str:
    """`1.2345`; `1.2345 ±0.0012` for a mean over seeds, with half the width of its 95% interval."""
    if not isinstance(value, dict):
        return f"{value:.4f}"
    half = "" if value["low"] is None else f" ±{(value['high'] - value['low']) / 2:.4f}"
    return f"{value['value']:.4f}{half}"


def _validated(which: str, key: str) -> Read:
    """Read a validation number of a run; of several seeds with its interval."""

    def read(column: dict) -> Any:
        found = (column.get("run") or {}).get(which)
        if found is None or found[key] is None:
            return None
        return found["intervals"][key] if "intervals" in found else found[key]

    return read


def _seconds(value: float) -> str:
    return f"{value:,.1f} s" if value < 600 else f"{value / 3600:,.2f} h"


def _plain(value: float) -> str:
    return f"{value:,.0f}"


def _measured(found: dict[str, Any]) -> Iterator[tuple[str, str, Read, Callable[[Any], str], bool]]:
    """The measured rows, under the machine, the precision and the length that the numbers are of."""
    known = next((column["measured"] for column in found["columns"] if column.get("measured")), None)
    if known is None:
        return
    many = known["threads"]
    threads = f", {many} thread{'s' * (many != 1)}" if known["device"] == "cpu" else ""
    place = f"{known['device']}{threads}, {known['precision']}, one row of {known['seq_len']:,} tokens"
    for label, name, text in _MEASURED:
        yield f"measured on {place}", label, _part("measured", name), text, True


_MEASURED = [
    ("prefill, tokens/s", "prefill_tokens_per_s", _plain),
    ("cache allocated, prefill", "cache_bytes", binary),
    ("training, tokens/s", "training_tokens_per_s", _plain),
    ("peak memory, prefill", "prefill_peak_bytes", binary),
    ("peak memory, training", "training_peak_bytes", binary),
]
_TRAINED = [
    ("trained", "validation loss, final", _validated("final", "loss"), _loss, True),
    ("trained", "validation loss, best", _validated("best", "loss"), _loss, True),
    ("trained", "bits per byte, final", _validated("final", "bits_per_byte"), _loss, True),
    ("trained", "bits per byte, best", _validated("best", "bits_per_byte"), _loss, True),
    ("trained", "tokens", _part("run", "tokens"), decimal, True),
    ("trained", "FLOPs", _part("run", "flops"), decimal, True),
    ("trained", "wall time", _part("run", "time_s"), _seconds, True),
    ("trained", "tokens/s at the end", _part("run", "tokens_per_s"), _plain, True),
]
