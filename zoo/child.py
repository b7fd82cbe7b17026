"""Processes of ours that run another command of ours."""

import os
import sys
from collections.abc import Sequence

LAUNCHED = "ZOO_LAUNCHED"  # for the processes of `zoo train --devices`: the id of the one that started them
MESSAGE_PIPE = "ZOO_MESSAGE_PIPE"  # the number of the file by which each of them sends it its last message


def python_module(module: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs a module of the zoo with this Python.

    `python -m` puts the working directory, which may be somebody else's, before all other modules: it does so in the
    new process only if it did in this one.
    """
    safe = [] if _imports_from_here() else ["-P"]
    return [sys.executable, *safe, "-m", module, *arguments]


def pipe_to_launcher() -> int | None:
    """The pipe by which this process tells the one that started it, for one device of several, why it ended.

    Taken out of the environment: processes that this one starts have messages of their own.
    """
    number = os.environ.pop(MESSAGE_PIPE, "")
    try:
        os.set_inheritable(int(number), False)
    except (ValueError, OSError):
        return None
    return int(number)


def import_nothing_from_here() -> None:
    """Keep the working directory out of the import path of every Python that this process starts, and of theirs.

    `python -c`, by which multiprocessing starts its processes, puts it first as `-m` does: a socket.py next to somebody
    else's data would run.  Nothing is changed if this process itself looks for modules there.
    """
    if not _imports_from_here():
        os.environ["PYTHONSAFEPATH"] = "1"


def _imports_from_here() -> bool:
    """Whether this process looks for modules in the working directory."""
    try:
        here = os.path.realpath(os.curdir)
    except OSError:  # it was removed, so it holds no modules
        return False
    return any(os.path.realpath(path or os.curdir) == here for path in sys.path)


def plugin_options() -> list[str]:
    """`--plugin` for each plugin that was imported in this process."""
    from zoo.blocks.plugins import named_plugins  # every command needs this module, few need plugins

    return [part for name in named_plugins() for part in ("--plugin", name)]
