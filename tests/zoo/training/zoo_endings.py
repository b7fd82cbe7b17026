"""A plugin with a multiple-choice task whose options have many lengths."""

from typing import ClassVar, Literal

from zoo.blocks import register
from zoo.evaluation.task import Choice, Metric, Row, Task


class Endings(Task):
    """Which ending of the words is the one that was written?"""

    title: ClassVar[str] = "Endings"
    measures: ClassVar[str] = "which of three endings follows"
    data_from: ClassVar[str] = "made by rule"
    metrics: ClassVar = (Metric("accuracy"), Metric("nats", "lower", False))
    task: Literal["endings"] = "endings"

    def examples(self, model):
        return [
            Choice(tuple((f"window {'block ' * row}", " token" * n) for n in (1, 2, 5)), row % 3)
            for row in range(self.rows or 7)
        ]

    def score(self, example, answer):
        best = max(range(3), key=answer.loglikelihood.__getitem__)
        return Row({"accuracy": float(best == example.gold), "nats": -answer.loglikelihood[example.gold]})


register("endings", "zoo_endings:Endings", family="tasks")
