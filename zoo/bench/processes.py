"""Measurements in processes of their own: how one is started, and why one failed."""

import signal
from collections.abc import Sequence

from zoo.child import python_module
from zoo.processes import end_with_parent


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command of a module of zoo.bench that measures and prints JSON."""
    return python_module(f"zoo.bench.{module}", arguments)


def end_with_the_command() -> None:
    """Called first by the process: it does not go on measuring when the command was killed."""
    end_with_parent(signal.SIGTERM)


def why_failed(code: int, said: str) -> str | None:
    """What its last traceback raises, or the last line that it wrote to standard error, or the signal that killed it.

    None if it succeeded.  said: its standard error.
    """
    if code == 0:
        return None
    if code < 0:
        return f"the process was killed by {_name(-code)}"
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    tracebacks = [i for i, line in enumerate(lines) if line == "Traceback (most recent call last):"]
    if tracebacks:  # frames are indented; a message of several lines often ends with advice
        raised = [line for line in lines[tracebacks[-1] + 1 :] if not line.startswith(" ")]
        lines = raised[:1] or lines
    return lines[-1].strip() if lines else f"the process ended with exit code {code}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
