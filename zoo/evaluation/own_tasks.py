"""Tasks of other packages: whether they give what the zoo asks of a task."""

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from zoo.blocks.making import is_own
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.task import Choice, Labelled, Prompt, Row, Task


def checked_examples(task: Task, found: Any) -> list:
    """What `task.examples` returned or yields, as a list.  Raises EvaluationError for what is no example."""
    if is_own(type(task)):
        return list(found)
    many = isinstance(found, Iterable) and not isinstance(found, str | Mapping)
    made = list(found) if many else [found]
    types = {type(example) for example in made}
    if not types <= {Choice, Labelled, Prompt} or len(types) > 1:
        names = " and ".join(sorted(each.__name__ for each in types))
        kinds = "Choice, a list of Labelled or a list of Prompt"
        raise EvaluationError(f"{task.task}: examples must be a list of {kinds}; found {names}")
    return made


def scored(task: Task, example: Any, reply: Any) -> Row:
    """`task.score`.  Raises EvaluationError if it is no `Row` of numbers of the task's metrics."""
    row = task.score(example, reply)
    if is_own(type(task)):
        return row
    if not isinstance(row, Row):
        raise EvaluationError(f"{task.task}: score must return a zoo.evaluation.task.Row; found {type(row).__name__}")
    metrics = [metric.name for metric in task.metrics]
    for metric, value in row.values.items():
        if metric not in metrics:
            raise EvaluationError(f"{task.task}: score gives {metric!r}; the metrics are {', '.join(metrics)}")
        if not isinstance(value, Real | np.bool_):  # numbers of numpy too: float32, and the bool of a comparison
            found = type(value).__name__
            raise EvaluationError(f"{task.task}: score must give numbers; found {found} for {metric!r}")
    return row
