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
    """The last line that a process wrote to standard error, or the signal that killed it; None if it succeeded."""
    if code == 0:
        return None
    if code < 0:
        return f"the process was killed by {_name(-code)}"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else f"the process ended with exit code {code}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
