"""A run folder as a Python object: what it holds, its model, its text, its scores. Torch is imported when needed."""

import os
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.files import present
from zoo.recipe import Recipe, load_recipe
from zoo.runs.folder import RunFolder
from zoo.runs.listing import sentence
from zoo.runs.metrics import read_metrics
from zoo.sparkline import sparkline


class Run(os.PathLike):
    """A run folder. It stands wherever the path of one may: `zoo.load(run)`, `zoo.compare([run, "zoo:tiny/full"])`.

    path: the folder, such as `runs/quickstart`.  Raises ZooError if it holds no recipe.yaml.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not present(self.path / "recipe.yaml"):
            raise ZooError(f"{self.path / 'recipe.yaml'}: no such file; not a run folder")

    def __fspath__(self) -> str:
        return str(self.path)

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe that the run was trained with."""
        return load_recipe(self.path / "recipe.yaml", of_run=True)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json: final numbers of a complete run; None while it is not complete."""
        return RunFolder(self.path).read_summary()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl in order, one a batch and one a validation, as dictionaries."""
        return read_metrics(RunFolder(self.path).metrics)

    def load(self, device: str = "cpu"):
        """The trained model, as `zoo.load`."""
        from zoo.runs.weights import load

        return load(self.path, device=device)

    def generate(self, prompts: Any, **settings: Any):
        """Continue prompts, as `zoo.generate`."""
        from zoo.inference.generate import generate

        return generate(self.path, prompts, **settings)

    def evaluate(self, tasks: Any, **settings: Any):
        """Score the model on tasks, as `zoo.evaluate`."""
        from zoo.evaluation.run import evaluate

        return evaluate(self, tasks, **settings)

    def __repr__(self) -> str:
        return f"<{sentence(self.path)}>"

    def _repr_html_(self) -> str:
        losses = [(record["batch"], record["loss"]) for record in self.metrics if "loss" in record]
        return f"<div>{sparkline(losses)} {escape(sentence(self.path))}</div>"
