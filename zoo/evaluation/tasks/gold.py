"""Bits per byte of the right answers of all common-sense tasks."""

import math

from zoo.evaluation.groups import GROUPS
from zoo.evaluation.registry import make_tasks
from zoo.evaluation.task import Choice, Chosen, ModelFacts, Row, TaskRows
from zoo.evaluation.tasks.gold_config import ROWS, CommonSenseBits


class CommonSenseBitsRows(TaskRows):
    """The questions of the tasks, each with its right answer alone."""

    task: CommonSenseBits

    def examples(self, model: ModelFacts) -> list[Choice]:
        found = []
        for member in make_tasks(GROUPS["common_sense"], rows=self.task.rows or ROWS, seed=self.task.seed):
            questions = member.examples(model)
            for question in questions:
                assert isinstance(question, Choice)
                facets = {"task": member.task, "weight": 1 / len(questions)}  # tasks have different numbers of rows
                cluster = question.cluster and f"{member.task}: {question.cluster}"
                found.append(Choice((question.options[question.gold],), 0, cluster, facets))
        return found

    def score(self, example: Choice, answer: Chosen) -> Row:
        size = len(str(example.options[0][1]).encode())
        bits = -answer.loglikelihood[0] / math.log(2) / size
        by = [("task", example.facets["task"], "bits_per_byte", bits, 1.0)]
        return Row({"bits_per_byte": bits}, {"bits_per_byte": example.facets["weight"]}, by)
