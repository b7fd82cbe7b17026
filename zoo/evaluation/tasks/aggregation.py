"""RULER's tracing and counting tasks: variable tracking, common words, frequent words."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.task import ModelFacts, Prompt
from zoo.evaluation.tasks import words
from zoo.evaluation.tasks.haystack import encode, lay
from zoo.evaluation.tasks.long_context import N_OPTIONS, LongContext, WithHaystack

COMMON, FREQUENT = 10, 3  # words that are asked for


class VariableTracking(WithHaystack):
    """A number is given to a variable, that one to the next, and so on: which variables hold the number?"""

    title: ClassVar[str] = "Variable tracking"
    measures: ClassVar[str] = "following a chain of assignments through the text"
    task: Literal["variable_tracking"] = "variable_tracking"
    hops: int = Field(4, ge=1, description="Assignments after the first in a chain.")
    chains: int = Field(2, ge=1, description="Chains in the text; the first one is asked for.")

    def prompts(self, model: ModelFacts, length: int) -> Iterator[Prompt]:
        fill = self.filler(model, length)
        for row in range(self.n_rows):
            rng = self.row_rng(length, row)
            n = self.hops + 1
            names = words.names(rng, self.chains * n + N_OPTIONS)
            values = words.numbers(rng, self.chains)
            chains = [names[i * n : (i + 1) * n] for i in range(self.chains)]
            sentences: list[tuple[float, list[int]]] = []
            for chain, value in zip(chains, values, strict=True):
                texts = [f"VAR {chain[0]} = {value}. "]
                texts += [f"VAR {new} = VAR {old}. " for old, new in pairwise(chain)]
                # The steps of a chain come in order, at random depths.
                sentences += zip(sorted(rng.random(n).tolist()), (encode(model, t) for t in texts), strict=True)
            head = "Assignments to variables are hidden in the text below. Follow them.\n"
            tail = (
                f"\nQuestion: Which variables have the value {values[0]} in the text above?\nAnswer: The variables are:"
            )
            most = self.to_generate(model, chains[0])
            left = length - (most if self.generate else max(len(encode(model, f" {name}")) for name in names))
            laid = lay(encode(model, head), sentences, encode(model, tail), partial(fill.cut, rng=rng), left)
            others = [name for chain in chains[1:] for name in chain] + names[self.chains * n :]
            yield self.make(model, laid.tokens, chains[0], others, most, length=length, starts=laid.starts)


class CommonWords(LongContext):
    """A numbered list in which ten words occur often and the others seldom: which are the ten?"""

    title: ClassVar[str] = "Common words"
    measures: ClassVar[str] = "counting: the ten words of a list that occur often"
    data_from: ClassVar[str] = "made by rule"
    task: Literal["common_words"] = "common_words"
    often: int = Field(30, ge=2, description="How many times each of the ten words occurs.")
    seldom: int = Field(3, ge=1, description="How many times each of the others occurs.")

    def prompts(self, model: ModelFacts, length: int) -> Iterator[Prompt]:
        for row in range(self.n_rows):
            rng = self.row_rng(length, row)
            known = words.keys(rng, 2000)
            common, others = known[:COMMON], known[COMMON:]
            head = encode(model, "Below is a numbered list of words. Some occur often. Remember those.\n")
            tail = encode(
                model, "\nQuestion: Which ten words of the list above occur most often?\nAnswer: The words are:"
            )
            most = self.to_generate(model, common)
            left = length - len(head) - len(tail) - (most if self.generate else _longest(model, known))
            listed = self._list(model, rng, common, others, left)
            tokens = [*head, *listed, *tail]
            yield self.make(model, tokens, common, others, most, length=length)

    def _list(self, model, rng, common: list[str], others: list[str], left: int) -> list[int]:
        """The longest list that fits: with as many different seldom words as there is room for."""
        low, high, seed = 1, len(others), int(rng.integers(2**32))
        need = len(self._tokens(model, seed, common, others[:low]))
        if need > left:
            raise EvaluationError(f"lengths: the shortest list takes {need} tokens of this tokenizer, {left} are left")
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(self._tokens(model, seed, common, others[:middle])) <= left
            low, high = (middle, high) if fits else (low, middle - 1)
        listed = self._tokens(model, seed, common, others[:low])
        return listed + (encode(model, "\n") * left)[: left - len(listed)]

    def _tokens(self, model, seed: int, common: list[str], others: list[str]) -> list[int]:
        every = common * self.often + others * self.seldom
        order = np.random.default_rng(seed).permutation(len(every))
        return encode(model, " ".join(f"{n}. {every[i]}" for n, i in enumerate(order, start=1)))


class FrequentWords(LongContext):
    """Coded words whose frequencies fall as a power of their rank: which three occur most?"""

    title: ClassVar[str] = "Frequent words"
    measures: ClassVar[str] = "counting: the three most frequent of coded words"
    data_from: ClassVar[str] = "made by rule"
    task: Literal["frequent_words"] = "frequent_words"
    alpha: float = Field(2.0, gt=1, description="Word of rank r occurs in proportion to r^-alpha.")

    def prompts(self, model: ModelFacts, length: int) -> Iterator[Prompt]:
        for row in range(self.n_rows):
            rng = self.row_rng(length, row)
            coded = [name.lower() for name in words.names(rng, 200)]
            head = encode(model, "Below is a text of coded words. Remember which of them occur most often.\n")
            tail = encode(model, "\nQuestion: Which three coded words occur most often above?\nAnswer: The words are:")
            most = self.to_generate(model, coded[:FREQUENT])
            left = length - len(head) - len(tail) - (most if self.generate else _longest(model, coded))
            text = self._text(model, rng, coded, left)
            tokens = [*head, *text, *tail]
            yield self.make(model, tokens, coded[:FREQUENT], coded[FREQUENT:], most, length=length)

    def _text(self, model, rng, coded: list[str], left: int) -> list[int]:
        each = max(len(encode(model, f" {word}")) for word in coded)
        share = np.arange(1, len(coded) + 1, dtype=np.float64) ** -self.alpha
        counts = np.floor(left / each * share / share.sum()).astype(int)
        # Ranks must differ where it matters, or the question has no one answer.
        if counts[FREQUENT - 1] <= counts[FREQUENT] or counts[FREQUENT] < 1:
            raise EvaluationError(f"lengths: {left} tokens are too few for words of clearly different frequency")
        drawn = np.repeat(np.arange(len(coded)), counts)
        text = encode(model, " ".join(coded[i] for i in rng.permutation(drawn)))
        return text + (encode(model, "\n") * left)[: max(0, left - len(text))]


def _longest(model: ModelFacts, texts: list[str]) -> int:
    return max(len(encode(model, f" {text}")) for text in texts)
