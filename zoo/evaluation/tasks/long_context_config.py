"""What the configs of long-context tasks share. The families are those of RULER (arXiv 2404.06654). No numpy."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import Paper
from zoo.evaluation.task import Counts, Metric, Task

ROWS = 500
N_OPTIONS = 16
METRICS = (
    Metric("rank_accuracy", about="share of the rows whose likeliest option is right"),
    Metric("mean_rank", "lower", False, about="of the best right option among all, 1 is best"),
    Metric("accuracy", about="share of the right answers that greedy decoding contains"),
)


class LongContext(Task):
    """A long prompt with a question at its end."""

    module: ClassVar[str] = "zoo.evaluation.tasks.long_context:LongContextRows"
    metrics: ClassVar = METRICS
    data_from: ClassVar[str] = "made by rule; haystack: text needs prose"
    papers: ClassVar = (Paper("RULER: The Real Context Size of Long-Context Models (Hsieh 2024)", "2404.06654"),)
    facets: ClassVar[tuple[str, ...]] = ("length",)

    lengths: Counts | None = Field(
        None, description="Tokens of the prompt with the answer, one set of rows each. Default: the model's context."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Tokens to generate. Default: twice the answer's tokens plus 16, at most 128."
    )
    generate: bool = Field(True, description="Whether to generate at all; false scores the ranks only.")

    @classmethod
    def row_count(cls) -> str:
        return f"{ROWS} a length"

    @classmethod
    def chance_text(cls) -> str:
        return f"{1 / N_OPTIONS:.0%}"


class WithHaystack(LongContext):
    """A long-context task whose prompt is filled with noise or prose."""

    module: ClassVar[str] = "zoo.evaluation.tasks.long_context:WithHaystackRows"

    haystack: Literal["noise", "text"] = Field("noise", description="The filler; text: prose.")
    text: str | None = Field(None, description="haystack text: a UTF-8 file. Default: the run's held-out text.")
