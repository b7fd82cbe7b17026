"""RULER's tracing and counting tasks: variable tracking, common words, frequent words."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np

from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.task import ModelFacts, Prompt
from zoo.evaluation.tasks import words
from zoo.evaluation.tasks.aggregation_config import CommonWords, FrequentWords, VariableTracking
from zoo.evaluation.tasks.haystack import encode, encode_each, lay, most_tokens
from zoo.evaluation.tasks.long_context import LongContextRows, WithHaystackRows
from zoo.evaluation.tasks.long_context_config import N_OPTIONS

COMMON, FREQUENT = 10, 3  # words that are asked for


class VariableTrackingRows(WithHaystackRows):
    """Chains of assignments laid into a filler."""

    task: VariableTracking

    def prompts(self, model: ModelFacts, length: int) -> Iterator[Prompt]:
        fill = self.filler(model, length)
        for row in range(self.n_rows):
            rng = self.row_rng(length, row)
            n = self.task.hops + 1
            names = words.names(rng, self.task.chains * n + N_OPTIONS)
            values = words.numbers(rng, self.task.chains)
            chains = [names[i * n : (i + 1) * n] for i in range(self.task.chains)]
            sentences: list[tuple[float, list[int]]] = []
            for chain, value in zip(chains, values, strict=True):
                texts = [f"VAR {chain[0]} = {value}. "]
                texts += [f"VAR {new} = VAR {old}. " for old, new in pairwise(chain)]
                # The steps of a chain come in order, at random depths.
                sentences += zip(sorted(rng.random(n).tolist()), encode_each(model, texts), strict=True)
            head = "Assignments to variables are hidden in the text below. Follow them.\n"
            tail = (
                f"\nQuestion: Which variables have the value {values[0]} in the text above?\nAnswer: The variables are:"
            )
            most = self.to_generate(model, chains[0])
            left = length - (most if self.task.generate else most_tokens(model, names))
            laid = lay(encode(model, head), sentences, encode(model, tail), partial(fill.cut, rng=rng), left)
            others = [name for chain in chains[1:] for name in chain] + names[self.task.chains * n :]
            yield self.make(model, laid.tokens, chains[0], others, most, length=length, starts=laid.starts)


class CommonWordsRows(LongContextRows):
    """Numbered lists of words."""

    task: CommonWords

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
            left = length - len(head) - len(tail) - (most if self.task.generate else most_tokens(model, known))
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
        every = common * self.task.often + others * self.task.seldom
        order = np.random.default_rng(seed).permutation(len(every))
        return encode(model, " ".join(f"{n}. {every[i]}" for n, i in enumerate(order, start=1)))


class FrequentWordsRows(LongContextRows):
    """Texts of coded words."""

    task: FrequentWords

    def prompts(self, model: ModelFacts, length: int) -> Iterator[Prompt]:
        for row in range(self.n_rows):
            rng = self.row_rng(length, row)
            coded = [name.lower() for name in words.names(rng, 200)]
            head = encode(model, "Below is a text of coded words. Remember which of them occur most often.\n")
            tail = encode(model, "\nQuestion: Which three coded words occur most often above?\nAnswer: The words are:")
            most = self.to_generate(model, coded[:FREQUENT])
            left = length - len(head) - len(tail) - (most if self.task.generate else most_tokens(model, coded))
            text = self._text(model, rng, coded, left)
            tokens = [*head, *text, *tail]
            yield self.make(model, tokens, coded[:FREQUENT], coded[FREQUENT:], most, length=length)

    def _text(self, model, rng, coded: list[str], left: int) -> list[int]:
        each = most_tokens(model, coded)
        share = np.arange(1, len(coded) + 1, dtype=np.float64) ** -self.task.alpha
        counts = np.floor(left / each * share / share.sum()).astype(int)
        # Ranks must differ where it matters, or the question has no one answer.
        if counts[FREQUENT - 1] <= counts[FREQUENT] or counts[FREQUENT] < 1:
            raise EvaluationError(f"lengths: {left} tokens are too few for words of clearly different frequency")
        drawn = np.repeat(np.arange(len(coded)), counts)
        text = encode(model, " ".join(coded[i] for i in rng.permutation(drawn)))
        if len(text) > left:  # a tokenizer that cuts words in a row otherwise than each alone
            raise EvaluationError(f"lengths: the words take {len(text)} tokens of this tokenizer, {left} are left")
        return text + (encode(model, "\n") * left)[: left - len(text)]
