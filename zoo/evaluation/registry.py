"""The names of evaluation tasks and where their classes live; imported when looked up. No torch.

Another package adds a task with an entry point of the group `zoo.tasks`, name = task, value = "module:TaskClass".
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module, metadata
from typing import Any

from pydantic import ValidationError

from zoo.errors import unknown
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.task import Task

ENTRY_POINTS = "zoo.tasks"
_TASKS: dict[str, str] = {
    "mqar": "zoo.evaluation.tasks.recall:Mqar",
    "compositional_mqar": "zoo.evaluation.tasks.recall:CompositionalMqar",
    "forgetting_mqar": "zoo.evaluation.tasks.recall:ForgettingMqar",
    "copy": "zoo.evaluation.tasks.recall:Copy",
    "induction": "zoo.evaluation.tasks.recall:Induction",
    "niah_single_1": "zoo.evaluation.tasks.needles:NiahSingle1",
    "niah_single_2": "zoo.evaluation.tasks.needles:NiahSingle2",
    "niah_single_3": "zoo.evaluation.tasks.needles:NiahSingle3",
    "niah_multikey_1": "zoo.evaluation.tasks.needles:NiahMultiKey1",
    "niah_multikey_2": "zoo.evaluation.tasks.needles:NiahMultiKey2",
    "niah_multikey_3": "zoo.evaluation.tasks.needles:NiahMultiKey3",
    "niah_multivalue": "zoo.evaluation.tasks.needles:NiahMultiValue",
    "niah_multiquery": "zoo.evaluation.tasks.needles:NiahMultiQuery",
    "variable_tracking": "zoo.evaluation.tasks.aggregation:VariableTracking",
    "common_words": "zoo.evaluation.tasks.aggregation:CommonWords",
    "frequent_words": "zoo.evaluation.tasks.aggregation:FrequentWords",
    "loss_by_position": "zoo.evaluation.tasks.language:LossByPosition",
    "perplexity": "zoo.evaluation.tasks.language:Perplexity",
    "hellaswag": "zoo.evaluation.tasks.choices:HellaSwag",
    "piqa": "zoo.evaluation.tasks.choices:Piqa",
    "winogrande": "zoo.evaluation.tasks.choices:WinoGrande",
    "arc_easy": "zoo.evaluation.tasks.choices:ArcEasy",
    "arc_challenge": "zoo.evaluation.tasks.choices:ArcChallenge",
    "boolq": "zoo.evaluation.tasks.choices:BoolQ",
    "openbookqa": "zoo.evaluation.tasks.choices:OpenBookQA",
    "sciq": "zoo.evaluation.tasks.choices:SciQ",
    "copa": "zoo.evaluation.tasks.choices:Copa",
    "commonsense_qa": "zoo.evaluation.tasks.choices:CommonsenseQA",
    "social_iqa": "zoo.evaluation.tasks.choices:SocialIQa",
    "lambada": "zoo.evaluation.tasks.choices:Lambada",
    "mmlu": "zoo.evaluation.tasks.choices:Mmlu",
}
# A name for several tasks, in the order in which they are shown.
GROUPS: dict[str, tuple[str, ...]] = {
    "recall": ("mqar", "compositional_mqar", "forgetting_mqar", "copy", "induction"),
    "niah_single": ("niah_single_1", "niah_single_2", "niah_single_3"),
    "niah": (
        "niah_single_1",
        "niah_single_2",
        "niah_single_3",
        "niah_multikey_1",
        "niah_multikey_2",
        "niah_multikey_3",
        "niah_multivalue",
        "niah_multiquery",
    ),
    "ruler": (
        "niah_single_1",
        "niah_single_2",
        "niah_single_3",
        "niah_multikey_1",
        "niah_multikey_2",
        "niah_multikey_3",
        "niah_multivalue",
        "niah_multiquery",
        "variable_tracking",
        "common_words",
        "frequent_words",
    ),
    "common_sense": (
        "hellaswag",
        "piqa",
        "winogrande",
        "arc_easy",
        "arc_challenge",
        "boolq",
        "openbookqa",
        "sciq",
        "copa",
        "commonsense_qa",
        "social_iqa",
        "lambada",
    ),
}


@cache
def _installed() -> dict[str, str]:
    return {entry.name: entry.value for entry in metadata.entry_points(group=ENTRY_POINTS)}


def register(name: str, target: str) -> None:
    """Add a task for this process. target: "module:TaskClass", imported at the first look-up."""
    if _TASKS.get(name, target) != target:
        raise ValueError(f"task {name!r} is taken by {_TASKS[name]}; found {target}")
    _TASKS[name] = target


def names() -> list[str]:
    """Every known task, the zoo's own first."""
    return [*_TASKS, *(name for name in _installed() if name not in _TASKS)]


def task_class(name: str) -> type[Task]:
    """The class of a task.  Raises EvaluationError if there is none, or if it cannot be imported."""
    target = _TASKS.get(name) or _installed().get(name)
    if target is None:
        raise EvaluationError(unknown("task", name, [*GROUPS, *names()]))
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a module of another package can raise anything while it is imported
        raise EvaluationError(f"task {name!r} cannot be loaded from {target}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise EvaluationError(f"task {name!r}: {target} must be a subclass of zoo.evaluation.task.Task")
    return found


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
        for name in GROUPS.get(own["task"], (own["task"],)):
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
        raise EvaluationError(f"task {name}: {key}: {message}; found {first['input']!r}") from error
