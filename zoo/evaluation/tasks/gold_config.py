"""Bits per byte of right answers over all common-sense tasks. No numpy; the rows: zoo/evaluation/tasks/gold.py."""

from typing import ClassVar, Literal

from zoo.evaluation import package_data
from zoo.evaluation.groups import GROUPS
from zoo.evaluation.task import Metric, Task

ROWS = 100


class CommonSenseBits(Task):
    """Bits per byte of the right answers of all common-sense tasks, each task with the same weight.

    One number that moves at 20M to 100M parameters, where every accuracy is at chance. Only the right answers are read,
    so a question costs one row of tokens instead of one for each option. `rows` are those of each task.
    """

    module: ClassVar[str] = "zoo.evaluation.tasks.gold:CommonSenseBitsRows"
    title: ClassVar[str] = "Common sense in bits"
    measures: ClassVar[str] = "likelihood of the right answers of all common-sense tasks, for small models"
    data_from: ClassVar[str] = package_data.PACKAGE
    metrics: ClassVar = (Metric("bits_per_byte", "lower", False, about="of the right answers, the mean over tasks"),)
    facets: ClassVar[tuple[str, ...]] = ("task",)

    task: Literal["common_sense_bits"] = "common_sense_bits"

    def missing(self) -> str | None:
        return package_data.missing()

    @classmethod
    def row_count(cls) -> str:
        return f"{ROWS} of each of {len(GROUPS['common_sense'])} tasks"
