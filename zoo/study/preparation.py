"""The process that prepares what a run of a study needs, before the first one is trained.

    python -m zoo.study.preparation RECIPE --record FILE [--tasks JSON] [--plugin MODULE]

It prepares the rows of training, makes the examples of the tasks, and writes {"rows": HASH} to the record, or {"why":
MESSAGE} if it fails. A run that would end in an error after hours, because the data of a task are missing or its rows
do not fit, never starts. It ends with the study (process ZOO_STUDY_PARENT), however that ends.
"""

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.files import read_json, write_json
from zoo.study.child import ends_with_study, unexpected
from zoo.study.config import StudyError
from zoo.study.preload import STOPPED
from zoo.terminal import err


def main(arguments: list[str] | None = None) -> int:
    """Prepare; 0 if all is there, 1 with a message on standard error if not.  arguments: default: the process's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--tasks", default="[]")
    parser.add_argument("--plugin", action="append", default=[])
    asked = parser.parse_args(arguments)
    if not ends_with_study():
        return STOPPED
    try:
        write_json(asked.record, _prepare(asked))
    except ZooError as error:
        return _failed(asked.record, str(error))
    except Exception as error:
        return _failed(asked.record, unexpected(error))
    return 0


def _failed(record: Path, why: str) -> int:
    err(why)
    write_json(record, {"why": why})
    return 1


def read_rows(record: Path) -> str | None:
    """The hash of the rows that were prepared, as `DataRecord.rows_digest`.  Raises StudyError for another record."""
    rows = read_json(record, "the study writes it anew", StudyError).get("rows")
    if not (rows is None or isinstance(rows, str)):
        raise StudyError(f"{record}: rows: must be a hash; found {rows!r}")
    return rows


def read_failure(record: Path) -> str | None:
    """Why the preparation ended, None if it did not say."""
    with suppress(ZooError):
        why = read_json(record).get("why")
        return why if isinstance(why, str) else None
    return None


def _prepare(asked: argparse.Namespace) -> dict[str, Any]:
    from zoo.blocks import load_plugin
    from zoo.data.identity import DataRecord
    from zoo.data.show import prepare_for
    from zoo.recipe import load_recipe

    for module in asked.plugin:
        load_plugin(module)
    recipe = load_recipe(asked.recipe)
    prepared = prepare_for(recipe)
    if tasks := json.loads(asked.tasks):
        _check_tasks(tasks, recipe, prepared)
    return {"rows": DataRecord.of(prepared).rows_digest}


def _check_tasks(tasks: list, recipe: Any, prepared: Any) -> None:
    """Raise EvaluationError that names the task if a model of this recipe cannot be given its examples."""
    from zoo.evaluation.asking import plan  # imports torch
    from zoo.evaluation.errors import EvaluationError
    from zoo.evaluation.registry import make_tasks
    from zoo.evaluation.run import make_examples
    from zoo.evaluation.subject import Untrained

    subject = Untrained(recipe, prepared)
    for task in make_tasks(tasks):
        try:
            plan(subject, make_examples(task, subject))
        except EvaluationError as error:
            message = str(error)
            raise EvaluationError(message if message.startswith(task.task) else f"{task.task}: {message}") from error


if __name__ == "__main__":
    sys.exit(main())
