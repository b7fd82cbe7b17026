"""The interface of an evaluation task: a config with the facts about it, and what makes its rows and scores them.

    class Parity(Task):                     # fields and facts; no numpy
        module = "my_package.parity:ParityRows"
        task: Literal["parity"] = "parity"

    class ParityRows(TaskRows):             # imported when the task is evaluated
        def examples(self, model): ...      # rows, made by rule or read from files
        def score(self, example, answer): ...    # numbers of one row

A task sees the model as `ModelFacts` and answers as plain numbers. The three kinds of example say how the model is
asked: `Choice` by the likelihood of continuations, `Labelled` by its predictions under teacher forcing, `Prompt` by
greedy generation.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from zoo.blocks.about import About, Paper
from zoo.blocks.making import make

if TYPE_CHECKING:
    import numpy as np

    from zoo.data.packing import Tokenizer

IGNORED = -100


class ModelFacts(Protocol):
    """What the examples of a task may depend on.

    tokenizer: None if the model reads plain numbers.  vocab_size: numbers that it knows.  max_len: tokens of a row.
    data: the `data` section of the recipe it was trained with (zoo.data.config.DataConfig), None if not known.
    longest: most tokens of a row that it can compute at all, None if any number: rotary models go past max_len.
    held_out: validation rows and texts (zoo.evaluation.held_out.HeldOut), None where there are none.
    """

    name: str
    tokenizer: "Tokenizer | None"
    vocab_size: int
    max_len: int
    longest: int | None
    data: Any
    held_out: Any


Text = str | tuple[int, ...]  # a text, or its tokens where a task lays them out itself


@dataclass(frozen=True)
class Choice:
    """Which of several continuations is right: one (context, continuation) for each option.

    gold: index of the right one.  cluster: rows with the same cluster share a context, and are resampled together.
    """

    options: tuple[tuple[Text, Text], ...]
    gold: int
    cluster: str | None = None
    facets: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Labelled:
    """A row of tokens and the label of each position, int64 [T]; -100 where nothing is asked.

    starts: places where documents begin, for models that keep documents apart; None: the row is one document.
    """

    tokens: "np.ndarray"
    labels: "np.ndarray"
    starts: "np.ndarray | None" = None
    cluster: str | None = None
    facets: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """A prompt that the model continues greedily by up to max_tokens tokens (0: not at all), and options to rank.

    answers: texts that the continuation should contain.  options: tokens of continuations whose likelihoods are
    ranked, the first n_right of them right.
    """

    tokens: tuple[int, ...]
    max_tokens: int
    answers: tuple[str, ...]
    options: tuple[tuple[int, ...], ...] = ()
    n_right: int = 1
    cluster: str | None = None
    facets: Mapping[str, Any] = field(default_factory=dict)


Example = Choice | Labelled | Prompt


@dataclass(frozen=True)
class Chosen:
    """The answer to a `Choice`: for each option the log-likelihood in nats, and whether greedy decoding gives it."""

    loglikelihood: tuple[float, ...]
    greedy: tuple[bool, ...]
    n_tokens: tuple[int, ...]
    truncated: bool = False


@dataclass(frozen=True)
class Predicted:
    """The answer to a `Labelled`: at each place with a label, in order, the likeliest token and the label's nats."""

    tokens: "np.ndarray"
    nats: "np.ndarray"


@dataclass(frozen=True)
class Generated:
    """The answer to a `Prompt`: the text that followed, and the log-likelihood in nats of each option."""

    text: str
    loglikelihood: tuple[float, ...] = ()


Answer = Chosen | Predicted | Generated


@dataclass(frozen=True)
class Metric:
    """A number that a task reports: `better` is "higher" or "lower"; `percent` says how it is shown.

    per_token: whether it depends on how a text is cut into tokens, so that it compares only models of one tokenizer.
    """

    name: str
    better: str = "higher"
    percent: bool = True
    about: str = ""
    per_token: bool = False


@dataclass
class Row:
    """The numbers of one example.

    values: by metric.  weights: by metric, where rows do not count alike (default 1): the value of the task is then
    the weighted mean.  by: further breakdowns, facet -> (key, metric, value, weight).
    """

    values: dict[str, float]
    weights: dict[str, float] = field(default_factory=dict)
    by: list[tuple[str, Any, str, float, float]] = field(default_factory=list)


class _AboutTask:
    """What the reference says of a task beyond its docstring and fields, put together from the facts it states."""

    def __get__(self, instance: object, task: "type[Task]") -> About:
        metrics = ", ".join(
            f"`{each.name}` ({each.about})" if each.about else f"`{each.name}`" for each in task.metrics
        )
        primary = f"`{task.primary().name}`, on which a study decides"
        facts = {
            "Measures": task.measures,
            "Rows": task.row_count(),
            "Chance": task.chance_text(),
            "Data": task.data_from,
            "Metrics": metrics,
            "Primary metric": primary,
        }
        return About("\n".join(f"- {name}: {text}." for name, text in facts.items()), task.papers)


def _different(values: tuple[int, ...]) -> tuple[int, ...]:
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise ValueError(f"must be different, because equal rows add no evidence; {twice[0]} is there twice")
    return values


Different = AfterValidator(_different)
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1), Different]  # lengths, numbers of pairs


class Task(BaseModel):
    """Base of every task: the fields that all have, and the facts that a task states about itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # validators are made at first use

    module: ClassVar[str | None] = None  # "package.module:Class" of what runs; None: the task has the methods itself
    title: ClassVar[str]
    measures: ClassVar[str]
    data_from: ClassVar[str]
    papers: ClassVar[tuple[Paper, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]]  # the first is the primary one, by which the task is judged
    facets: ClassVar[tuple[str, ...]] = ()  # the breakdowns that the task reports, from the facets of its examples
    version: ClassVar[int] = 1  # raised when examples or scores change, so that results of two versions are not mixed
    needs_text: ClassVar[bool] = True  # whether the model must have a tokenizer
    about: ClassVar[_AboutTask] = _AboutTask()

    task: str
    rows: int | None = Field(None, ge=1, description="Examples to score; without it all, or the task's own number.")
    seed: int = Field(0, ge=0, description="Seed of examples that are made by rule, and of the choice of rows.")

    @property
    def label(self) -> str:
        """The task with the fields that were set, as one name: mqar(pairs=[8])."""
        own = {name: value for name, value in self.model_dump(exclude_unset=True).items() if name != "task"}
        settings = ", ".join(f"{name}={_compact(value)}" for name, value in sorted(own.items()) if value is not None)
        return f"{self.task}({settings})" if settings else self.task

    @classmethod
    def row_count(cls) -> str:
        """How many examples there are, for the list of tasks."""
        return "by rule"

    @classmethod
    def chance_text(cls) -> str:
        """The chance level of the primary metric, for the list of tasks."""
        return "none"

    @classmethod
    def primary(cls) -> Metric:
        """The metric by which the task is judged: the first."""
        return cls.metrics[0]

    def examples(self, model: ModelFacts) -> Sequence[Example]:
        """The rows for this model; the same seed gives the same rows on every machine.

        Raises EvaluationError, with what to change, if the model cannot be given them.
        """
        return self._that_runs.examples(model)

    def score(self, example: Any, answer: Any) -> Row:
        """The numbers of one row: an `Example` of the one type that the task makes, and the `Answer` to it."""
        return self._that_runs.score(example, answer)

    def missing(self) -> str | None:
        """Why its rows cannot be made in this environment, and the command that mends it; None if nothing lacks."""
        return None

    def chance(self, examples: Sequence[Any]) -> dict[str, float]:
        """The expected value of each metric for a model that guesses; metrics without one are left out."""
        return self._that_runs.chance(examples) if self.module else {}

    @property
    def _that_runs(self) -> "TaskRows":
        if self.module is None:
            raise NotImplementedError(f"{type(self).__name__} defines neither `module` nor examples and score")
        return make(f"task {self.task!r}", self.module, self, is_a=TaskRows)


class TaskRows(ABC):
    """What runs of a task: makes its rows for a model and scores the answers. Built as Class(task)."""

    def __init__(self, task: Any):
        self.task = task

    @abstractmethod
    def examples(self, model: ModelFacts) -> Sequence[Example]:
        """As `Task.examples`."""

    @abstractmethod
    def score(self, example: Any, answer: Any) -> Row:
        """As `Task.score`."""

    def chance(self, examples: Sequence[Any]) -> dict[str, float]:
        """As `Task.chance`."""
        return {}


def _compact(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ",".join(_compact(item) for item in value) + "]"
    return str(value)
