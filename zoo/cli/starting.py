"""What lets a command that only looks answer sooner."""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause Python's search for unreachable cycles while modules are imported or a recipe is read.

    Hardly anything becomes garbage there, and the search takes a tenth of the time of `zoo show`. Reference counting
    goes on, so memory that is no longer used is freed as ever. Also a decorator.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def without_pydantic_plugins() -> None:
    """Keep pydantic from reading the metadata of every installed package, to find plugins of its own (30 ms for 230).

    Such plugins log validations. A user who has set PYDANTIC_DISABLE_PLUGINS, to anything, decides.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")


def without_last_collection() -> None:
    """Keep Python from searching all objects once more while it ends, which takes a sixth of the time of `zoo show`.

    Only where torch is not loaded: its objects may hold processes and memory that the search would close.
    """
    if "torch" not in sys.modules:
        gc.freeze()
