"""Errors that a user of the zoo can cause, with the place of the mistake and a way out.

Every message says what would be right and what was found. The command line prints it without a traceback and exits
with the error's `exit_code`.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoo.terminal import one_line

if TYPE_CHECKING:
    from pydantic import ValidationError


def first_mistake(error: "ValidationError", *above: str | int, found: bool = False) -> str:
    """The first mistake that pydantic found, as `key: why`; with `found` also what stands there.

    above: the keys that lead to what was validated.
    """
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, (*above, *first["loc"])))
    text = f"{key}: {first['msg']}" if key else first["msg"]
    return f"{text}; found {shorten(first['input'])}" if found else text


class ZooError(Exception):
    """Something went wrong that the user can understand and act on; `zoo` prints it and exits with `exit_code`."""

    exit_code = 1


class AlreadyTold(SystemExit):
    """The command ends with this exit code, and has printed why."""


@dataclass(frozen=True)
class Problem:
    """One mistake: `file:line:column: key.path: message`; parts that are not known are left out.

    `file` is the path as the user wrote it, or the `--set key=value` that brought the value in.
    Lines and columns count from 1.
    """

    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = ":".join(one_line(part) for part in (self.file, self.line, self.column) if part is not None)
        text = ": ".join(part for part in (place, self.key and one_line(self.key), self.message) if part)
        return text if text.endswith((".", "?", "!")) else text + "."


class RecipeError(ZooError):
    """A recipe that cannot be used, with every problem found in it.

    of_keys: whether the problems are at keys of a recipe, which `zoo keys` explains.
    """

    exit_code = 2

    def __init__(self, problems: Sequence[Problem], of_keys: bool = False):
        self.problems = list(problems)
        self.of_keys = of_keys
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self):
        return type(self), (self.problems, self.of_keys)  # not the text: one process hands it to the others


def did_you_mean(name: object, known: Iterable[str], elsewhere: Sequence[str] = ()) -> str:
    """Return " Did you mean 'x'?" for the known name nearest to `name`, or "" when none is near.

    elsewhere: paths where just this name is a key; the first two are suggested too.
    """
    by_folded = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name)[:200].casefold(), by_folded, n=1)
    found = [by_folded[one] for one in near] + list(elsewhere[:2])
    return f" Did you mean {' or '.join(map(repr, found))}?" if found else ""


def unknown(what: str, name: object, known: Iterable[str], elsewhere: Sequence[str] = ()) -> str:
    """Return "unknown block 'gloabl'; known: local, global. Did you mean 'global'?"."""
    known = list(known)
    hint = did_you_mean(name, known, elsewhere)
    return f"unknown {what} {shorten(name)}; known: {', '.join(known) or 'none'}.{hint}"


def shorten(value: object, limit: int = 60) -> str:
    """Show a value of a recipe as its author would write it, on one line and not too long."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value[: limit + 1]) if isinstance(value, str) else str(value)
    return text if len(text) <= limit else text[: limit - 4] + "..." + ("'" if isinstance(value, str) else "")
