"""The process of one run of a study: trains it, scores it, and writes down how it ended if it did not succeed.

    python -m zoo.study.child RECIPE --run-dir DIR --outcome FILE [--tasks JSON] [--plugin MODULE]

It gets SIGTERM when the study (process ZOO_STUDY_PARENT) ends in any way, saves, and leaves with 130.
"""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from zoo.errors import ZooError
from zoo.files import open_file, write_json
from zoo.processes import end_with_parent
from zoo.study.preload import PARENT, STOPPED
from zoo.study.state import DIVERGED, FAILED
from zoo.terminal import err

PATIENCE_S = 600.0  # for the process of a study that was killed, which still saves


def preload() -> None:
    """Import what every run needs and takes seconds to import."""
    from zoo.training.lean_import import import_composer, import_streaming

    import_composer()  # without the packages that training does not use
    import_streaming()
    import zoo.training.engine  # noqa: F401


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 done, 1 failed (the outcome says why), 130 stopped.  arguments: default: those of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--outcome", type=Path, required=True)
    parser.add_argument("--tasks", default="[]")
    parser.add_argument("--plugin", action="append", default=[])
    asked = parser.parse_args(arguments)
    if not ends_with_study():
        return STOPPED
    try:
        _run(asked)
    except KeyboardInterrupt:
        return STOPPED
    except ZooError as error:
        if error.exit_code == STOPPED:
            return STOPPED
        return _failed(asked.outcome, DIVERGED if _diverged(error) else FAILED, str(error))
    except Exception as error:
        return _failed(asked.outcome, FAILED, unexpected(error))
    return 0


def ends_with_study() -> bool:
    """Tie this process to the study that started it, if one did: SIGTERM when it ends.  False: it has ended already."""
    if (parent := os.environ.get(PARENT)) is None:
        return True
    end_with_parent(signal.SIGTERM)
    return os.getppid() == int(parent)


def _run(asked: argparse.Namespace) -> None:
    from zoo.blocks import load_plugin
    from zoo.evaluation.registry import make_tasks
    from zoo.recipe import load_recipe

    for module in asked.plugin:
        load_plugin(module)
    recipe = load_recipe(asked.recipe)
    tasks = json.loads(asked.tasks)
    for task in make_tasks(tasks):
        if why := task.missing():  # on another node of a cluster: said before the training, not after it
            raise ZooError(f"tasks: {task.task}: {why}")
    _wait_for_folder(asked.run_dir)
    from zoo import training

    training.train(recipe, asked.run_dir)
    if tasks:
        from zoo.evaluation.run import evaluate

        evaluate(asked.run_dir, tasks)


def _wait_for_folder(run_dir: Path) -> None:
    """Wait until no other process trains into the folder."""
    end = time.monotonic() + PATIENCE_S
    with contextlib.suppress(ZooError), open_file(run_dir / ".lock") as file:
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            time.sleep(0.2)


def _diverged(error: BaseException | None) -> bool:
    """Whether the loss became infinite or not a number, here or in what the error is about."""
    while error is not None:
        if type(error).__name__ == "NonFinite":
            return True
        error = error.__cause__
    return False


def unexpected(error: Exception) -> str:
    """One line about an error that is not the zoo's, whose traceback is printed for the log."""
    from zoo.training.failures import explained

    traceback.print_exc()
    return explained(error) or f"{type(error).__name__}: {error}"


def _failed(outcome: Path, state: str, why: str) -> int:
    err(why)
    write_json(outcome, {"state": state, "why": why})
    return 1


if __name__ == "__main__":
    sys.exit(main())
