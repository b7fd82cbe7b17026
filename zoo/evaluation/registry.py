"""Evaluation tasks by name, made with their settings. No torch.

The names stand in the family `tasks` of zoo/parts.py. Another package adds a task with an entry point of the group
`zoo.tasks`, name = task, value = "module:TaskClass".
"""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from zoo.errors import shorten, unknown
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.groups import GROUPS, members, unknown_task
from zoo.evaluation.task import Task
from zoo.parts import TASKS

__all__ = ["GROUPS", "make_tasks", "names", "register", "task_class"]


def register(name: str, target: str) -> None:
    """Add a task for this process. target: "module:TaskClass", imported at the first look-up."""
    TASKS.register(name, target)


def names() -> list[str]:
    """Every known task, the zoo's own first."""
    return TASKS.kinds()


def task_class(name: str) -> type[Task]:
    """The class of a task.  Raises EvaluationError if there is none, or if it cannot be imported."""
    if why := unknown_task(name):
        raise EvaluationError(why)
    try:
        return TASKS.config_class(name)
    except ValueError as error:
        raise EvaluationError(str(error)) from error


def make_tasks(wanted: Sequence[Any], **settings: Any) -> list[Task]:
    """Tasks from names, groups, and mappings {task: NAME, field: value}.

    settings: values for every task that has such a field, e.g. rows=100; None is left out.
    Raises EvaluationError that names the task and the field.
    """
    made: list[Task] = []
    for each in wanted:
        own = {"task": each} if isinstance(each, str) else each
        if not (isinstance(own, dict) and isinstance(own.get("task"), str)):
            raise EvaluationError(f"tasks: must be a name, or a mapping with the key task; found {each!r}")
        for name in members(own["task"]):
            made.append(_make(name, own, settings))
    labels = [task.label for task in made]
    return [task for i, task in enumerate(made) if task.label not in labels[:i]]


def _make(name: str, own: dict[str, Any], settings: dict[str, Any]) -> Task:
    found = task_class(name)
    fields = found.model_fields
    values = {field: value for field, value in settings.items() if value is not None and field in fields}
    try:
        return found.model_validate({**values, **own, "task": name})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise EvaluationError(f"task {name}: {unknown('key', key, fields)}") from error
        message = first["msg"].removeprefix("Value error, ")
        if not key:  # of several fields together, which the message names
            raise EvaluationError(f"task {name}: {message}") from error
        raise EvaluationError(f"task {name}: {key}: {message}; found {shorten(first['input'])}") from error
