"""What a comparison shows, in a few sentences: losses first, then parameters, caches and FLOPs. No torch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zoo.report.columns import Column
from zoo.report.notes import comparable_score
from zoo.report.rows import Value, binary, decimal

EQUAL_PARAMETERS = 0.03  # as notes.MOST_PARAMETERS_APART: below it the counts are called equal
NAMES = {"loss": "validation loss", "bits_per_byte": "bits per byte of validation"}


def verdict(columns: Sequence[Column], facts: Sequence[dict[str, Any]], seq_lens: Sequence[int]) -> list[str]:
    """The sentences that stand on top of a report; [] if there is nothing to compare.

    facts: of each column.  Costs are named at the first and the last of `seq_lens`; what is equal takes no sentence.
    """
    found = list(_losses(columns, facts))
    known = [one for one in facts if "parameters" in one]
    if len(known) < 2:
        return found
    found.append(_parameters(known))
    lengths = [str(length) for length in dict.fromkeys((seq_lens[0], seq_lens[-1]))]
    base = facts[0] if "parameters" in facts[0] else None
    for title, read, text in (
        ("Smallest cache", lambda one, length: one["cache"]["held_bytes"][length], binary),
        ("Fewest forward FLOPs per token", lambda one, length: one["flops_per_token"][length], decimal),
    ):
        found.append(_least(title, known, base, lengths, read, text))
    return found


def _losses(columns: Sequence[Column], facts: Sequence[dict[str, Any]]) -> Iterator[str]:
    runs = {one["label"]: one["run"] for one in facts if one.get("run") and one["run"]["final"]}
    if len(runs) < 2:
        return
    score = comparable_score(columns, facts)
    if score is None:
        yield "The validation losses cannot be compared: the notes say why."
        return
    values = {label: run["final"][score] for label, run in runs.items()}
    if None in values.values():
        yield "The validation losses cannot be compared: the tokenizers differ and bits per byte are not known."
        return
    order = sorted(values, key=lambda label: values[label])
    best = values[order[0]]
    rest = (f", {label} {values[label]:.4f} (+{values[label] - best:.4f})" for label in order[1:])
    ranking = f"{order[0]} {best:.4f}{''.join(rest)}"
    yield f"{NAMES[score].capitalize()}, lowest first: {ranking}. {_trust(order, runs, score)}"
    if len({run["tokens"] for run in runs.values()}) > 1:
        yield "The runs did not train on the same number of tokens."


def _trust(order: list[str], runs: dict[str, dict], score: str) -> str:
    """How certain the order of the best two is."""
    pair = [runs[label]["final"].get("intervals", {}).get(score) for label in order[:2]]
    if any(one is None or one["low"] is None for one in pair):
        return "Without several seeds of each, a small difference can be chance."
    names = " and ".join(order[:2])
    if pair[0]["high"] < pair[1]["low"]:
        return f"The 95% intervals of {names} over the seeds do not overlap."
    return f"The 95% intervals of {names} over the seeds overlap: their order is not certain."


def _parameters(known: list[dict]) -> str:
    totals = {one["label"]: one["parameters"]["total"] for one in known}
    least, most = min(totals, key=lambda label: totals[label]), max(totals, key=lambda label: totals[label])
    if totals[least] == totals[most]:
        return f"Parameters: {decimal(totals[least])} in each."
    ends = f"{decimal(totals[least])} ({least}) to {decimal(totals[most])} ({most})"
    apart = totals[most] / totals[least] - 1
    return f"Parameters: {ends}{', less than 3% apart' if apart < EQUAL_PARAMETERS else ''}."


def _least(
    title: str,
    known: list[dict],
    base: dict | None,
    lengths: list[str],
    read: Callable[[dict, str], float],
    text: Callable[[float], str],
) -> str:
    """`Smallest cache: ansa, 54.0 MiB at 8,192 tokens (×0.28 of full) and 819 MiB at 131,072 tokens (×0.27).`"""
    parts: list[str] = []
    before: list[str] | None = None
    for length in lengths:
        values = {one["label"]: read(one, length) for one in known}
        least = min(values.values())
        names = [label for label, value in values.items() if value == least]
        size = f"{text(least)} at {int(length):,} tokens"
        if len(names) == len(values):
            names = ["the same for all"]
        elif base is not None and base["label"] not in names and values[base["label"]]:
            ratio = Value(least, "", least / values[base["label"]]).ratio_text
            size += f" ({ratio} of {base['label']})"
        parts.append(f"and {size}" if names == before else f"{_listed(names)}, {size}")
        before = names
    joined = parts[0] + "".join(f" {part}" if part.startswith("and ") else f"; {part}" for part in parts[1:])
    return f"{title}: {joined}."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
