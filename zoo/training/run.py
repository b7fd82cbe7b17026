"""A training run from recipe to weights. `train` is the whole story, read from the top."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from zoo.errors import ZooError
from zoo.training.loggers import check_installed
from zoo.training.run_folder import RunFolder
from zoo.training.screen import Screen, log_to, stop_log, tell_terminal
from zoo.training.summary import Summary

log = logging.getLogger("zoo.training")

GOES_ON = "checkpoints are whole whenever they are there, so the same command continues from the newest"


def train(recipe, run_dir: str | Path) -> Summary:
    """Train the recipe's model into `run_dir`, from the newest checkpoint there if there is one.

    recipe: zoo.recipe.Recipe.  Returns the summary, which is printed too; a run that is complete is left as it is.
    Raises RecipeError or DataError (exit code 2) for what the recipe got wrong, Interrupted (130) after SIGTERM or
    Ctrl-C, NonFinite or another ZooError (1) if training failed.
    """
    folder = RunFolder(run_dir)
    rank = int(os.environ.get("RANK", 0))
    screen = Screen(rank)
    changes = folder.check_continues(recipe)
    done = folder.read_summary()
    if done is not None and not any(change.startswith("train.duration:") for change in changes):
        return _complete(done, folder, screen)
    check_installed(recipe.train.loggers)
    try:
        with folder.locked() if rank == 0 else contextlib.nullcontext():
            return _run(recipe, folder, screen, changes, rank)
    except OSError as error:  # a full disk, or one that went away
        raise ZooError(f"{folder.path}: training failed: {error}; {GOES_ON}") from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "out of memory"
        less = "a smaller train.micro_batch, or train.activation_checkpointing=true, needs less (zoo cost estimates it)"
        raise ZooError(f"{folder.path}: training failed: {reason}; {less}; {GOES_ON}") from error


def _is_out_of_memory(error: Exception) -> bool:
    """Torch's errors on a GPU and on a CPU, and Composer's when not even one row fits, have no type in common."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text


def _run(recipe, folder: RunFolder, screen: Screen, changes: list[str], rank: int) -> Summary:
    handler = log_to(folder.log) if rank == 0 else None
    try:
        with _whole_imports():
            from zoo.training.engine import run  # Composer takes seconds to import

        return run(recipe, folder, screen, changes)
    except Exception as error:
        log.error("%s", error, exc_info=None if isinstance(error, ZooError) else error)
        raise
    finally:
        screen.close()
        if handler is not None:
            stop_log(handler)


@contextlib.contextmanager
def _whole_imports() -> Iterator[None]:
    """Let Ctrl-C wait for the end of an import; a second one does not wait.

    Libraries catch what is raised while they import something, Ctrl-C too, and then fail in strange ways or go on.
    """
    on_main_thread = threading.current_thread() is threading.main_thread()
    if not on_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    received: list[int] = []

    def note(number: int, frame) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tell_terminal("SIGINT: stops when the engine is imported (Ctrl-C again: at once)")

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if received:
        raise KeyboardInterrupt


def _complete(done: dict, folder: RunFolder, screen: Screen) -> Summary:
    summary = Summary.load(done, folder.path)
    screen.say(f"run complete: {summary.headline()}")
    screen.say(
        f"to train longer: --set train.duration=... with more than {summary.batches} batches; "
        f"to start over: remove {folder.path}"
    )
    return summary
