"""Processes of ours that run another command of ours."""

import os
import sys
from collections.abc import Sequence

from zoo.blocks.plugins import named_plugins


def python_module(module: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs a module of the zoo with this Python.

    `python -m` puts the working directory, which may be somebody else's, before all other modules: it does so in the
    new process only if it did in this one.
    """
    here = os.path.realpath(os.getcwd())
    safe = [] if any(os.path.realpath(path or ".") == here for path in sys.path) else ["-P"]
    return [sys.executable, *safe, "-m", module, *arguments]


def plugin_options() -> list[str]:
    """`--plugin` for each plugin that was imported in this process."""
    return [part for name in named_plugins() for part in ("--plugin", name)]
