"""Measurements in processes of their own: how one is started, and why one failed."""

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from zoo.child import python_module
from zoo.processes import end_with_parent

UNCAUGHT = 1  # exit code of Python after an exception that nothing caught
REFUSED = 2  # exit code after `refuse`, as argparse ends


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command of a module of zoo.bench that measures and prints JSON."""
    return python_module(f"zoo.bench.{module}", arguments)


def end_with_the_command() -> None:
    """Called first by the process: it does not go on measuring when the command was killed."""
    end_with_parent(signal.SIGTERM)


def refuse(error: Exception) -> NoReturn:
    """End this process with the error's message on standard error, where the command reads it: `why_failed`."""
    print(error, file=sys.stderr)
    sys.exit(REFUSED)


def why_failed(code: int, said: str) -> str | None:
    """Why a process failed, in one line; None if it succeeded.  said: its standard error.

    The signal that killed it; after an uncaught exception what the last traceback raises; otherwise the last line of
    `said`, because a traceback before it was only logged.
    """
    if code == 0:
        return None
    if code < 0:
        return f"the process was killed by {_name(-code)}"
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    tracebacks = [
        i
        for i, line in enumerate(lines)
        if line == "Traceback (most recent call last):" and not (i and lines[i - 1].startswith("Exception ignored in"))
    ]
    if tracebacks and code == UNCAUGHT:  # frames are indented; a message of several lines often ends with advice
        raised = [line for line in lines[tracebacks[-1] + 1 :] if not line.startswith(" ")]
        lines = raised[:1] or lines
    return lines[-1].strip() if lines else f"the process ended with exit code {code}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
