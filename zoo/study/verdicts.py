"""The conclusions of a study in sentences: a verdict for each architecture, and what limits it. No torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from zoo.study.equality import unequal
from zoo.study.runner import Runner
from zoo.study.state import DIVERGED, DONE, FAILED, WAITING, has_scores


def verdict(name: str, found: Mapping[str, dict], metric: str, expected: int) -> dict[str, Any]:
    """{"architecture", "outcome", "sentence"}; outcome: first, better, worse, undecided or missing."""
    first, each = next(iter(found)), found[name]
    mean, what = each[f"mean_{metric}"], {"loss": "validation loss", "bits_per_byte": "bits per byte"}[metric]
    at = f" at {each['chosen']}" if each["chosen"] else ""
    if mean is None:
        return _said(name, "missing", f"{name}: no result: {_why_missing(each, expected)}")
    of = f"{mean['n']} of {expected} seeds" if mean["n"] < expected else f"{expected} seed{'s' * (expected != 1)}"
    value = f"{what} {mean['value']:.4f}{interval(mean['low'], mean['high'])}, {of}{at}"
    if name == first:
        others = "; the others are compared with it" if len(found) > 1 else ""
        return _said(name, "first", f"{name}: {value}{others}.")
    difference = each["difference"]
    if difference is None:
        return _said(name, "missing", f"{name}: {value}; no seed in common with {first}, so nothing is compared.")
    signed = f"{difference['value']:+.4f}"
    if difference["holm_low"] is None:
        why = "one common seed says nothing about chance"
        return _said(name, "undecided", f"{name}: undecided against {first}: {signed}, but {why}; {value}.")
    bounds = f"{difference['holm_low']:+.4f} to {difference['holm_high']:+.4f}"
    if not difference["decided"]:
        same = "; every seed gave the same value" if difference["low"] == difference["high"] == 0 else ""
        text = f"undecided against {first}: the difference, {signed} ({bounds}), may be zero{same}"
        return _said(name, "undecided", f"{name}: {text}; {value}.")
    word = "better" if difference["value"] < 0 else "worse"
    p = (
        f"p = {difference['p_holm']:.2g} after Holm"
        if difference["p_holm"] > 0
        else "every seed gave the same difference"
    )
    sign = 1 if word == "worse" else -1  # the interval of what the sentence says, so that its numbers have no sign
    low, high = sorted(sign * difference[end] for end in ("holm_low", "holm_high"))
    by = f"{abs(difference['value']):.4f} ({low:.4f} to {high:.4f}; {p})"
    return _said(name, word, f"{name}: {word} than {first} by {by}; {value}.")


def _said(name: str, outcome: str, sentence: str) -> dict[str, Any]:
    return {"architecture": name, "outcome": outcome, "sentence": sentence}


def _why_missing(each: dict, expected: int) -> str:
    if each["chosen"] is None:
        states = [run["state"] for run in each["choosing_runs"]]
        if WAITING in states:
            return f"{states.count(WAITING)} of {len(states)} runs that choose from the grid are still waiting."
        return "every point of the grid diverged or failed."
    counts = {s: sum(run["state"] == s for run in each["runs"]) for s in (WAITING, FAILED, DIVERGED)}
    return ", ".join(f"{count} of {expected} runs {state}" for state, count in counts.items() if count) + "."


def interval(low: float | None, high: float | None, digits: int = 4) -> str:
    """` (1.2000 to 1.3000)`, or nothing."""
    return "" if low is None else f" ({low:.{digits}f} to {high:.{digits}f})"


def _lacking_scores(runner: Runner, found: Mapping[str, dict]) -> Iterator[str]:
    """Tasks that runs which are done have not been scored on, or on another version of the task."""
    done = [run for each in found.values() for run in each["runs"] if run["state"] == DONE]
    for task, version in runner.tasks.items():
        lacking = sum(not has_scores(run, {task: version}) for run in done)
        if lacking:
            yield f"{lacking} of {len(done)} runs lack the scores of {task}; zoo study run scores them."


def notes(runner: Runner, found: Mapping[str, dict]) -> list[str]:
    """What limits the conclusions."""
    notes = []
    for name, each in found.items():
        for key in each["edges"]:
            value = each["chosen_values"][key]
            notes.append(
                f"{name}: the chosen {key} = {value} is at the edge of the grid; the best value may lie outside."
            )
        failed = [run["point"] for run in each["choosing_runs"] if run["state"] == FAILED]
        if failed and each["chosen"] is not None:
            points = ", ".join(dict.fromkeys(failed))
            notes.append(f"{name}: chosen without {points}, whose runs failed; zoo study run --retry trains them.")
        for kind in ("choosing_runs", "runs"):
            for run in each[kind]:
                if run["state"] in (FAILED, DIVERGED):
                    why = run.get("why", "").splitlines()
                    notes.append(f"{run['run']} {run['state']}{f': {why[0]}' if why else ''}")
    waiting = runner.expected() - sum(
        run["state"] != WAITING for each in found.values() for run in (*each["choosing_runs"], *each["runs"])
    )
    if waiting:
        notes.append(f"{waiting} of {runner.expected()} runs are not done; what is said here may change.")
    notes += _lacking_scores(runner, found)
    if len(runner.runs.study.config.counting) < 3:
        notes.append("Fewer than three seeds count: intervals are wide, and little can be decided.")
    return [*notes, *(f"{note[0].upper()}{note[1:]}." for note in unequal(runner.runs))]
