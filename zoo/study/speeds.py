"""The training speeds of a study, and which of them can be compared. No torch.

A run that shares its device with others is slower, so the speeds of runs are compared only where equally many runs were
on the same kind of device. Speeds that were measured with the device to themselves are preferred to those of runs.
All numbers of a report have the same basis: one of ALONE and RUNS.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ALONE, RUNS = "alone", "runs"
EQUALLY_MANY = 1.1  # largest ratio of the mean numbers of runs on a device

NO_RUNS = "no run has a speed"
NOT_ALONE = "only the first of these was measured alone"
OTHER_MACHINE = "they were measured alone on other devices, or with other versions"
NOT_KNOWN = "it is not known how many runs shared the device while they trained"
NO_DEVICE = "it is not known on which device they trained"
OTHER_DEVICE = "they trained on different devices"
OTHER_NUMBER = "different numbers of runs shared the device while they trained"


def put_comparisons(found: Mapping[str, dict], measured: dict[str, dict], curves: Mapping[str, list]) -> dict[str, Any]:
    """Put `speedup_time` and `time_curve` into each architecture of `measured`, where its speed can be compared.

    found: the results of each architecture, the one that the others are compared with first.  measured: what was
    measured of each: `tokens_per_s`, `runs`, `alone`, see `findings`.  curves: architecture -> [tokens, mean loss,
    lowest, highest] at each validation.
    Returns {"basis": ALONE or RUNS, "not_comparable": architecture -> why its speed is not that of the first}.
    """
    first, *others = found
    basis = ALONE if measured[first]["alone"] and any(measured[n]["alone"] for n in others or [first]) else RUNS
    reasons = {name: _why_not(measured[first], measured[name], basis) for name in others}
    not_comparable = {name: why for name, why in reasons.items() if why is not None}
    for name, each in found.items():
        comparable = name not in not_comparable
        ratio = _rate(each, measured[name], basis) / _rate(found[first], measured[first], basis) if comparable else None
        compute = each["speedup"]["compute"] if each["speedup"] else None
        measured[name]["speedup_time"] = compute * ratio if compute is not None and ratio is not None else None
        measured[name]["time_curve"] = _time_curve(measured[name], basis, curves[name]) if comparable else []
    drawn = [name for name in found if measured[name]["time_curve"]]
    if len(found) > 1 and len(drawn) == 1:  # nothing to compare it with
        measured[drawn[0]]["time_curve"] = []
    return {"basis": basis, "not_comparable": not_comparable}


def range_of_sharing(runs: Sequence[dict]) -> tuple[float, float] | None:
    """Fewest and most runs on the device of some runs; None if that is not known of all of them."""
    numbers = [run["runs_on_device"] for run in runs]
    return (min(numbers), max(numbers)) if numbers and None not in numbers else None


def _why_not(first: dict, other: dict, basis: str) -> str | None:
    """Why the training speeds of two architectures cannot be compared; None if they can."""
    if basis == ALONE:
        if not other["alone"]:
            return NOT_ALONE
        return None if first["alone"]["machine"] == other["alone"]["machine"] else OTHER_MACHINE
    if first["tokens_per_s"] is None or other["tokens_per_s"] is None:
        return NO_RUNS
    runs = [*first["runs"], *other["runs"]]
    if (shared := range_of_sharing(runs)) is None:
        return NOT_KNOWN
    devices = [(run["environment"].get("device"), run["environment"].get("threads")) for run in runs]
    if any(device is None for device, _ in devices):
        return NO_DEVICE
    if any(each != devices[0] for each in devices):
        return OTHER_DEVICE
    return None if shared[1] <= EQUALLY_MANY * shared[0] else OTHER_NUMBER


def _rate(each: dict, measured: dict, basis: str) -> float:
    """Training FLOPs a second; 1 where no speed is known, of the first architecture compared with itself."""
    speed = measured["alone"]["tokens_per_s"] if basis == ALONE else measured["tokens_per_s"]
    return (speed or 1.0) * each["flops_per_token"]


def _time_curve(measured: dict, basis: str, curve: list[list[float]]) -> list[list[float]]:
    """[seconds, mean loss, lowest, highest] at each validation: at the speed measured alone, or as a mean of runs."""
    if basis == ALONE:
        speed = measured["alone"]["tokens_per_s"]
        return [[tokens / speed, *losses] for tokens, *losses in curve]
    curves = [run["validation_time"] for run in measured["runs"]]
    if not curves:
        return []
    return [
        [sum(p[0] for p in at) / len(at), sum(p[1] for p in at) / len(at), min(p[1] for p in at), max(p[1] for p in at)]
        for at in zip(*curves, strict=False)
    ]


def notes(comparison: Mapping[str, Any], first: str, others: int, asked: bool) -> Iterator[str]:
    """A sentence for each reason why speeds cannot be compared: which, why, and what to do.

    others: how many architectures there are beside the first.  asked: whether the study file asks for the speeds alone.
    """
    groups: dict[str, list[str]] = {}
    for name, why in comparison["not_comparable"].items():
        if why != NO_RUNS:  # the verdicts say so
            groups.setdefault(why, []).append(name)
    for why, names in groups.items():
        if why == OTHER_MACHINE:
            way_out = "remove speed/training in the study's folder, and zoo study run measures each of them again"
        elif asked:
            way_out = "zoo study run measures each of them alone"
        else:
            way_out = "with training: true under measure: in the study file, zoo study run measures each of them alone"
        which = "the other architectures" if len(names) == others > 1 else ", ".join(names)
        yield f"Training speeds are not comparable between {first} and {which}: {why}; {way_out}."
