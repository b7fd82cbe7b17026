"""Which cases of a costly test every run has, and which only the long one."""

from collections.abc import Hashable, Sequence

import pytest


def kept(cases: Sequence[Sequence[Hashable]], n: int) -> list[bool]:
    """Whether each case is among the about 1 / n for every run.  cases: the value of each axis.

    With one axis each n-th case is. With several it is a diagonal: an axis loses no value if another has n or more.
    """
    numbers: list[dict[Hashable, int]] = [{} for _ in cases[0]] if cases else []
    places = [
        [known.setdefault(value, len(known)) for known, value in zip(numbers, case, strict=True)] for case in cases
    ]
    return [sum(place) % n == 0 for place in places]


def axes(item: pytest.Item) -> list[Hashable]:
    """The value of each axis of a case: of each `parametrize`, which may set several arguments, and each fixture."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return [item.nodeid]
    values = {name: f"{value!r}" for name, value in callspec.params.items()}
    found: list[Hashable] = []
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        found.append(tuple(values.pop(name) for name in names))
    return [*found, *(values[name] for name in sorted(values))]


def thin(items: Sequence[pytest.Item]) -> None:
    """Mark as `long` what is not kept of the tests that are `thinned(n)`; cases that are long already do not count."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("thinned") and not item.get_closest_marker("long"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        mark = cases[0].get_closest_marker("thinned")
        assert mark is not None
        for item, stays in zip(cases, kept([axes(item) for item in cases], mark.args[0]), strict=True):
            if not stays:
                item.add_marker("long")
