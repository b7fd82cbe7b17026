"""What the long-context tasks share: lengths, exact prompts, greedy accuracy and the rank of the right answer.

`accuracy` is RULER's (arXiv 2404.06654): the share of the right answers that the generated text contains. Small models
generate nothing right, so the likelihood of the right answer is ranked as well, among distractors of the same form.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.task import Generated, ModelFacts, Prompt, Row, TaskRows
from zoo.evaluation.tasks.haystack import Filler, encode_each, filler
from zoo.evaluation.tasks.long_context_config import N_OPTIONS, ROWS, LongContext, WithHaystack

MAX_TOKENS = 128


class LongContextRows(TaskRows):
    """Prompts of each length, the rank of the right answer, and what greedy decoding contains."""

    task: LongContext

    def examples(self, model: ModelFacts) -> list[Prompt]:
        lengths = self.task.lengths or (model.max_len,)
        for length in lengths:
            if length > model.max_len:
                raise EvaluationError(f"lengths: {length} tokens, and the model takes {model.max_len}")
        return [prompt for length in lengths for prompt in self.prompts(model, length)]

    def prompts(self, model: ModelFacts, length: int) -> Iterator[Prompt]:
        """The rows of one length, answer included."""
        raise NotImplementedError

    def row_rng(self, length: int, row: int) -> np.random.Generator:
        """The generator of one row: the rows do not depend on how many there are."""
        return np.random.default_rng([self.task.seed, length, row, *self.task.task.encode()])

    @property
    def n_rows(self) -> int:
        return self.task.rows or ROWS

    def to_generate(self, model: ModelFacts, answers: Sequence[str]) -> int:
        longest = sum(map(len, encode_each(model, [f" {answer}," for answer in answers])))
        return self.task.max_tokens or min(MAX_TOKENS, 2 * longest + 16)

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
        if self.task.generate:
            values["accuracy"] = float(np.mean([wanted in answer.text for wanted in example.answers]))
        row = Row(values)
        for facet in self.task.facets:
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
        options = tuple(map(tuple, encode_each(model, [f" {each}" for each in (*answers, *others)])))
        return Prompt(
            tokens=tuple(tokens),
            max_tokens=max_tokens if self.task.generate else 0,
            answers=tuple(answers),
            options=options,
            n_right=len(answers),
            facets=facets,
        )


class WithHaystackRows(LongContextRows):
    """Prompts that are filled with noise or prose."""

    task: WithHaystack

    def filler(self, model: ModelFacts, length: int) -> Filler:
        return filler(model, self.task.haystack, self.task.text, length)
