"""A training run from recipe to weights. `train` is the whole story, read from the top."""

import contextlib
import logging
import os
from pathlib import Path

from zoo.errors import ZooError
from zoo.processes import end_with_launcher, launched, start_resource_tracker
from zoo.runs.folder import RunFolder
from zoo.training.ahead import Ahead
from zoo.training.checkpoints import where_it_continues
from zoo.training.continuing import Change, check_continues, check_data_of_complete, damage, refuse_untrained
from zoo.training.drawing import Drawing
from zoo.training.failures import check_headroom, explain, in_reader
from zoo.training.interrupts import Interrupted, StopRequests
from zoo.training.lean_import import import_composer, import_streaming
from zoo.training.loggers import check_installed
from zoo.training.screen import Screen, log_to, stop_log
from zoo.training.summary import Summary

log = logging.getLogger("zoo.training")


def train(recipe, run_dir: str | Path) -> Summary:
    """Train the recipe's model into `run_dir`, from the newest checkpoint there if there is one.

    recipe: zoo.recipe.Recipe.  Returns the summary, which is printed too; a run that is complete is left as it is.
    Raises RecipeError or DataError (exit code 2) for what the recipe got wrong, Interrupted (130) after SIGTERM or
    Ctrl-C, NonFinite or another ZooError (1) if training failed.
    """
    folder = RunFolder(run_dir)
    rank = int(os.environ.get("RANK", 0))
    screen = Screen(rank)
    changes = check_continues(folder, recipe)
    if not any(change.key == "train.duration" for change in changes):
        summary = _complete(recipe, folder, screen, changes)
        if summary is not None:
            return summary
    check_installed(recipe.train.loggers)
    if launched():
        end_with_launcher()  # one that was killed would leave its processes training on
    requests = StopRequests(quiet=rank != 0)
    try:
        with requests, folder.locked() if rank == 0 else contextlib.nullcontext():
            start_resource_tracker()  # it lets signals through that waited, so after the handlers are set
            return _run(recipe, folder, screen, changes, rank, requests)
    except KeyboardInterrupt:
        raise Interrupted(f"{folder.path}: stopped; {where_it_continues(folder.checkpoints)}") from None
    except Exception as error:
        told = _explained(error)
        if told is None:
            raise
        stopped = f"after {requests.name()} " if requests.received is not None else ""
        message = f"{folder.path}: training failed: {stopped}{told}; {where_it_continues(folder.checkpoints)}"
        raise ZooError(message) from error


def _explained(error: Exception) -> str | None:
    """One line about an error that is not a bug: of the system, or of a process that reads rows."""
    if isinstance(error, ZooError):
        return in_reader(error)
    return explain(error)


def _run(
    recipe, folder: RunFolder, screen: Screen, changes: list[Change], rank: int, requests: StopRequests
) -> Summary:
    handler = log_to(folder.log) if rank == 0 else None
    try:
        with Ahead(recipe) as ahead, Drawing(recipe) as drawing:
            import_composer()  # takes seconds, and sets handlers of its own
            import_streaming()
            from zoo.training.engine import run

            check_headroom()
            requests.listen()
            requests.check()
            return run(recipe, folder, screen, changes, requests, ahead, drawing)
    except Exception as error:
        if handler is not None:  # without one, Python would print it, and the command prints it again
            log.error("%s", error, exc_info=None if isinstance(error, ZooError) else error)
        raise
    finally:
        screen.close()
        if handler is not None:
            stop_log(handler)


def _complete(recipe, folder: RunFolder, screen: Screen, changes: list[Change]) -> Summary | None:
    """The summary of a run that is complete and whole, None if there is something left to do.

    Raises RecipeError if it was trained with other settings, data or tokenizer than those of the recipe.
    """
    done = folder.read_summary()
    if done is None:
        return None
    summary = Summary.load(done, folder)
    refuse_untrained(folder, changes)
    if (why := damage(folder, done)) is not None:
        screen.say(f"{why}; weights and tokenizer are written anew from the last checkpoint")
        return None
    check_data_of_complete(folder, recipe, changes, screen.say)
    screen.say(f"run complete: {summary.headline()}")
    for change in changes:
        screen.say(f"changed since it was trained, without effect on its numbers: {change}")
    screen.say(
        f"to train longer: --set train.duration=... with more than {summary.batches} batches; "
        f"to start over: remove {folder.path}"
    )
    return summary
