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
    goes on, so memory that is no longer used is freed as ever. Later searches leave out what was made meanwhile, or the
    first of them would go through all of it. Also a decorator.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            leave_out_of_searches()
            gc.enable()


def leave_out_of_searches() -> None:
    """Keep the search for unreachable cycles from what there is now; that of Python's end takes 0.1 s of `zoo show`.

    Only where torch is not loaded: its objects may hold processes and memory that the search would close.
    """
    if "torch" not in sys.modules:
        gc.freeze()


def without_pydantic_plugins() -> None:
    """Keep pydantic from reading the metadata of every installed package, to find plugins of its own (30 ms for 230).

    Such plugins log validations. A user who has set PYDANTIC_DISABLE_PLUGINS, to anything, decides.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
