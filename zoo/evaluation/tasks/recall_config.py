"""Recall tasks: MQAR and its two variants, copy, induction. No numpy; the rows: zoo/evaluation/tasks/recall.py."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import Paper
from zoo.evaluation.task import Counts, Different, Metric, Task

ROWS = 500
METRICS = (
    Metric("accuracy", about="share of the answers that are the likeliest token"),
    Metric("rows_right", about="share of the rows with every answer right"),
    Metric("nats", better="lower", percent=False, about="cross-entropy of an answer, in nats"),
)


class Recall(Task):
    """What the recall tasks share: settings of `Synthetic`, one set of rows for each of them."""

    module: ClassVar[str] = "zoo.evaluation.tasks.recall:RecallRows"
    metrics: ClassVar = METRICS
    needs_text: ClassVar[bool] = False
    data_from: ClassVar[str] = "made by rule"
    facets: ClassVar[tuple[str, ...]] = ("length", "distance")

    lengths: Counts | None = Field(
        None, description="Tokens of a row, one set of rows for each. Default: as the model was trained, else 256."
    )
    vocab_size: int | None = Field(
        None, ge=8, description="Token numbers are below this. Default: as the model was trained, else at most 8192."
    )

    @classmethod
    def row_count(cls) -> str:
        return f"{ROWS} a setting"

    @classmethod
    def chance_text(cls) -> str:
        return "1 / vocab_size"


class Pairs(Recall):
    """Pairs of key and value, then each key once more as a query."""

    module: ClassVar[str] = "zoo.evaluation.tasks.recall:PairsRows"
    papers: ClassVar = (Paper("Zoology: Measuring Recall in Efficient Language Models (Arora 2023)", "2312.04927"),)
    facets: ClassVar[tuple[str, ...]] = ("length", "pairs", "distance")

    pairs: Counts | None = Field(
        None, description="Key-value pairs, one set of rows for each. Default: as trained, else 4, 8, 16 ... that fit."
    )
    power: float | None = Field(None, gt=0, le=1, description="As in the data source. Default: as trained, else 0.01.")
    filler: Literal["zeros", "random"] | None = Field(None, description="As in the data source; default as trained.")


class Mqar(Pairs):
    """Multi-query associative recall (zoology): pairs of key and value, then each key once more as a query."""

    title: ClassVar[str] = "Multi-query associative recall"
    measures: ClassVar[str] = "recall of a value by its key, by number of pairs and by distance"

    task: Literal["mqar"] = "mqar"


class CompositionalMqar(Pairs):
    """MQAR with keys of two tokens, neither of which alone determines the value."""

    title: ClassVar[str] = "Compositional associative recall"
    measures: ClassVar[str] = "recall by a key of two tokens, neither of which determines the value"

    task: Literal["compositional_mqar"] = "compositional_mqar"


class ForgettingMqar(Pairs):
    """MQAR with half of the keys written twice: the last value is right."""

    module: ClassVar[str] = "zoo.evaluation.tasks.recall:ForgettingMqarRows"
    title: ClassVar[str] = "Associative recall with overwriting"
    measures: ClassVar[str] = "recall of the latest value of a key that was written twice"
    facets: ClassVar[tuple[str, ...]] = ("length", "pairs", "distance", "written")

    task: Literal["forgetting_mqar"] = "forgetting_mqar"


class Repeat(Recall):
    """What tasks share that ask for the tokens of an earlier span again."""

    module: ClassVar[str] = "zoo.evaluation.tasks.recall:RepeatRows"

    span: int | None = Field(
        None, ge=2, description="Tokens that are repeated. Default: as trained, else all that fit."
    )


class Copy(Repeat):
    """Random tokens, a separator, the same tokens again."""

    title: ClassVar[str] = "Copy"
    measures: ClassVar[str] = "exact repetition of a random sequence after a separator"

    task: Literal["copy"] = "copy"


class Induction(Repeat):
    """A random sequence that comes again after a gap: each token must be followed by what followed it before."""

    module: ClassVar[str] = "zoo.evaluation.tasks.recall:InductionRows"
    title: ClassVar[str] = "Induction"
    measures: ClassVar[str] = "continuation of a random sequence that occurred before, by gap"
    papers: ClassVar = (Paper("In-context Learning and Induction Heads (Olsson 2022)", "2209.11895"),)

    task: Literal["induction"] = "induction"
    gaps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), Different] | None = Field(
        None, description="Tokens before the repetition; default as trained, else 0."
    )
