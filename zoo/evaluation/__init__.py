"""Evaluation: tasks, three ways to ask a model, scores with intervals.

    zoo.evaluate("runs/ansa", ["mqar", {"task": "niah_single_1", "lengths": [1024]}])

Names are imported when first used: a recipe that names tasks is checked without torch.
"""

from importlib import import_module

_EXPORTS = {
    "EvaluationError": "zoo.evaluation.errors",
    "Result": "zoo.evaluation.results",
    "Subject": "zoo.evaluation.subject",
    "Task": "zoo.evaluation.task",
    "evaluate": "zoo.evaluation.run",
    "load_subject": "zoo.evaluation.subjects",
    "make_tasks": "zoo.evaluation.registry",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name in _EXPORTS:
        found = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'zoo.evaluation' has no attribute {name!r}")
