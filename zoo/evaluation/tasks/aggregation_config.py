"""RULER's tracing and counting tasks. No numpy; the prompts: zoo/evaluation/tasks/aggregation.py."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from zoo.evaluation.tasks.long_context_config import LongContext, WithHaystack


class VariableTracking(WithHaystack):
    """A number is given to a variable, that one to the next, and so on: which variables hold the number?"""

    module: ClassVar[str] = "zoo.evaluation.tasks.aggregation:VariableTrackingRows"
    title: ClassVar[str] = "Variable tracking"
    measures: ClassVar[str] = "following a chain of assignments through the text"

    task: Literal["variable_tracking"] = "variable_tracking"
    hops: int = Field(4, ge=1, description="Assignments after the first in a chain.")
    chains: int = Field(2, ge=1, description="Chains in the text; the question is about the first one.")


class CommonWords(LongContext):
    """A numbered list in which ten words occur often and the others seldom: which are the ten?"""

    module: ClassVar[str] = "zoo.evaluation.tasks.aggregation:CommonWordsRows"
    title: ClassVar[str] = "Common words"
    measures: ClassVar[str] = "counting: the ten words of a list that occur often"
    data_from: ClassVar[str] = "made by rule"

    task: Literal["common_words"] = "common_words"
    often: int = Field(30, ge=2, description="How many times each of the ten words occurs.")
    seldom: int = Field(3, ge=1, description="How many times each of the others occurs.")

    @model_validator(mode="after")
    def _tells_them_apart(self) -> "CommonWords":
        if self.often <= self.seldom:
            raise ValueError(f"often must be more than seldom; found {self.often} and {self.seldom}")
        return self


class FrequentWords(LongContext):
    """Coded words whose frequencies fall as a power of their rank: which three occur most?"""

    module: ClassVar[str] = "zoo.evaluation.tasks.aggregation:FrequentWordsRows"
    title: ClassVar[str] = "Frequent words"
    measures: ClassVar[str] = "counting: the three most frequent of coded words"
    data_from: ClassVar[str] = "made by rule"

    task: Literal["frequent_words"] = "frequent_words"
    alpha: float = Field(2.0, gt=1, description="Word of rank r occurs in proportion to r^-alpha.")
