"""Blocks with names and a schedule, from the block that each layer has.  No torch."""

from typing import Any


def name_blocks(each: list[dict[str, Any]]) -> dict[str, Any]:
    """The keys `blocks`, `layers` and `n_layers` of a model whose layer i has the block each[i].

    Equal blocks get one name: their kind, `nope` without rotation, with a number where several have the same.
    """
    found: list[dict[str, Any]] = []
    for block in each:
        if block not in found:
            found.append(block)
    names: list[str] = []
    for block in found:
        base = block["kind"] if block.get("rope", True) else "nope"
        names.append(base if base not in names else f"{base}{len(names) + 1}")
    schedule = spell([names[found.index(block)] for block in each])
    return {"n_layers": len(each), "blocks": dict(zip(names, found, strict=True)), "layers": schedule}


def spell(names: list[str]) -> str:
    """The shortest schedule that expands to these names: repetitions of one, or of a group."""
    n = len(names)
    period = next(p for p in range(1, n + 1) if n % p == 0 and names == names[:p] * (n // p))
    inner, times = _runs(names[:period]), n // period
    if times == 1:
        return inner
    return f"{inner}*{times}" if period == 1 else f"({inner})*{times}"


def _runs(names: list[str]) -> str:
    runs: list[list] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1][1] += 1
        else:
            runs.append([name, 1])
    return " ".join(name if count == 1 else f"{name}*{count}" for name, count in runs)
