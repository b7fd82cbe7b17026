"""What the long-context tasks share: lengths, exact prompts, greedy accuracy and the rank of the right answer.

The families are those of RULER (arXiv 2404.06654), with words of our own. `accuracy` is RULER's: the share of the right
answers that the generated text contains. Small models generate nothing right, so the likelihood of the right answer is
ranked as well, among distractors of the same form.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.task import Generated, Metric, ModelFacts, Prompt, Row, Task
from zoo.evaluation.tasks.haystack import Filler, encode, filler

ROWS = 500
MAX_TOKENS = 128
N_OPTIONS = 16
METRICS = (
    Metric("rank_accuracy", about="share of the rows whose likeliest option is right"),
    Metric("mean_rank", "lower", False, about="of the best right option among all, 1 is best"),
    Metric("accuracy", about="share of the right answers that greedy decoding contains"),
)


class LongContext(Task):
    """A long prompt with a question at its end."""

    metrics: ClassVar = METRICS
    data_from: ClassVar[str] = "made by rule; haystack: text needs prose"
    papers: ClassVar[tuple[str, ...]] = ("arXiv 2404.06654",)
    facets: ClassVar[tuple[str, ...]] = ("length",)

    lengths: tuple[int, ...] | None = Field(
        None, description="Tokens of the prompt with the answer, one set of rows each. Default: the model's context."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Tokens to generate. Default: twice the answer's, and 16; at most 128."
    )
    generate: bool = Field(True, description="Whether to generate at all; false scores the ranks only.")

    @classmethod
    def row_count(cls) -> str:
        return f"{ROWS} a length"

    @classmethod
    def chance_text(cls) -> str:
        return f"{1 / N_OPTIONS:.0%}"

    def examples(self, model: ModelFacts) -> list[Prompt]:
        lengths = self.lengths or (model.max_len,)
        for length in lengths:
            if length > model.max_len:
                raise EvaluationError(f"lengths: {length} tokens, and the model takes {model.max_len}")
        return [prompt for length in lengths for prompt in self.prompts(model, length)]

    def prompts(self, model: ModelFacts, length: int) -> Iterator[Prompt]:
        """The rows of one length, answer included."""
        raise NotImplementedError

    def row_rng(self, length: int, row: int) -> np.random.Generator:
        """The generator of one row: the rows do not depend on how many there are."""
        return np.random.default_rng([self.seed, length, row, *self.task.encode()])

    @property
    def n_rows(self) -> int:
        return self.rows or ROWS

    def to_generate(self, model: ModelFacts, answers: Sequence[str]) -> int:
        longest = sum(len(encode(model, f" {answer},")) for answer in answers)
        return self.max_tokens or min(MAX_TOKENS, 2 * longest + 16)

    def score(self, example: Prompt, answer: Generated) -> Row:
        logs = np.array(answer.loglikelihood)
        right = logs[: example.n_right]
        best = right.max()
        above, ties, right_ties = int((logs > best).sum()), int((logs == best).sum()), int((right == best).sum())
        top = (logs == logs.max()).nonzero()[0]
        values = {
            "rank_accuracy": float((top < example.n_right).mean()),
            "mean_rank": above + (ties + 1) / (right_ties + 1),  # the best of r among k equals, in any order
        }
        if self.generate:
            values["accuracy"] = float(np.mean([wanted in answer.text for wanted in example.answers]))
        row = Row(values)
        for facet in self.facets:
            for name in ("rank_accuracy", "accuracy"):
                if name in values:
                    row.by.append((facet, example.facets[facet], name, values[name], 1.0))
        return row

    def chance(self, examples: Sequence[Prompt]) -> dict[str, float]:
        shares = [example.n_right / len(example.options) for example in examples]
        # The best of r places drawn from n without replacement is (n + 1) / (r + 1) on average.
        ranks = [(len(example.options) + 1) / (example.n_right + 1) for example in examples]
        return {"rank_accuracy": float(np.mean(shares)), "mean_rank": float(np.mean(ranks)), "accuracy": 0.0}

    def make(
        self,
        model: ModelFacts,
        tokens: Sequence[int],
        answers: Sequence[str],
        distractors: Sequence[str],
        max_tokens: int,
        **facets: Any,
    ) -> Prompt:
        """A prompt with its options: the answers first, then distractors up to N_OPTIONS."""
        others = list(distractors)[: max(1, N_OPTIONS - len(answers))]
        options = tuple(tuple(encode(model, f" {each}")) for each in (*answers, *others))
        return Prompt(
            tokens=tuple(tokens),
            max_tokens=max_tokens if self.generate else 0,
            answers=tuple(answers),
            options=options,
            n_right=len(answers),
            facets=facets,
        )


class WithHaystack(LongContext):
    """A long-context task whose prompt is filled with noise or prose."""

    haystack: Literal["noise", "text"] = Field("noise", description="The filler; text: prose.")
    text: str | None = Field(None, description="haystack text: a UTF-8 file. Default: the run's held-out text.")

    def filler(self, model: ModelFacts, length: int) -> Filler:
        return filler(model, self.haystack, self.text, length)
