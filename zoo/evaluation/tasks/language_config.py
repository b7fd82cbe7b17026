"""Loss on held-out text. No numpy; the rows: zoo/evaluation/tasks/language.py."""

from typing import ClassVar, Literal

from pydantic import Field

from zoo.evaluation.task import Counts, Metric, Task

ROWS = 64


class LossByPosition(Task):
    """Cross-entropy of held-out text in buckets of position, at the lengths asked for, also past the training length.

    The text is cut into rows of the longest length; a shorter length scores the beginning of the same rows, so that
    lengths are compared on the same tokens.
    """

    module: ClassVar[str] = "zoo.evaluation.tasks.language:LossByPositionRows"
    title: ClassVar[str] = "Loss by position"
    measures: ClassVar[str] = "how the loss falls with context, at and beyond the training length"
    data_from: ClassVar[str] = "the run's held-out text, or --data"
    metrics: ClassVar = (
        Metric("nats", "lower", False, about="per token", per_token=True),
        Metric("bits_per_byte", "lower", False, about="of the text"),
    )
    facets: ClassVar[tuple[str, ...]] = ("length", "position")
    needs_text: ClassVar[bool] = False

    task: Literal["loss_by_position"] = "loss_by_position"
    lengths: Counts | None = Field(
        None, description="Tokens of a row, one set of rows for each. Default: the model's context."
    )
    bucket: int | None = Field(None, ge=1, description="Positions in a bucket. Default: a sixteenth of the longest.")

    @classmethod
    def row_count(cls) -> str:
        return f"{ROWS} a length"


class Perplexity(Task):
    """Cross-entropy of a whole held-out split, in the rows of training: of all, by position and by document."""

    module: ClassVar[str] = "zoo.evaluation.tasks.language:PerplexityRows"
    title: ClassVar[str] = "Perplexity"
    version: ClassVar[int] = 2  # 1 counted documents that begin with a row as part of the one before
    measures: ClassVar[str] = "loss and bits per byte of a text, by position and by document"
    data_from: ClassVar[str] = "the run's held-out text, or --data"
    metrics: ClassVar = (
        Metric("nats", "lower", False, about="per token", per_token=True),
        Metric("bits_per_byte", "lower", False, about="of the text"),
    )
    facets: ClassVar[tuple[str, ...]] = ("position", "document")
    needs_text: ClassVar[bool] = False

    task: Literal["perplexity"] = "perplexity"
    bucket: int | None = Field(None, ge=1, description="Positions in a bucket. Default: a sixteenth of the row.")

    @classmethod
    def row_count(cls) -> str:
        return "the whole split"
