"""Long prompts of an exact number of tokens: filler around sentences that stand at given depths.

The parts of a prompt are made of tokens one by one and joined, so that its length and the places in it are exact for
every tokenizer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from zoo.data import tokenizers
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.task import ModelFacts
from zoo.files import read_text

NOISE = "The water of the lake is calm. A boat lies at the shore. A lamp burns in the window. The night is long. "


@dataclass(frozen=True)
class Filler:
    """Tokens to fill a prompt with, from a place that each row draws."""

    tokens: np.ndarray

    def cut(self, count: int, rng: np.random.Generator) -> list[int]:
        """`count` tokens in a row, from a random place on; from the beginning again where the filler ends."""
        start = int(rng.integers(len(self.tokens)))
        return np.take(self.tokens, np.arange(start, start + count), mode="wrap").tolist()


def filler(model: ModelFacts, haystack: str, text: str | None, least: int) -> Filler:
    """The filler of a kind of haystack: noise, or text.

    haystack: noise is a few short sentences, repeated; text is `text`, a file of the user's own, or without one the
    held-out text of the run, of which at least `least` tokens are read.
    """
    if haystack == "noise":
        return Filler(np.asarray(encode(model, NOISE)))
    documents: Iterator[str] | None = (
        iter((_read(Path(text)),)) if text else model.held_out.documents() if model.held_out else None
    )
    if documents is None:
        raise EvaluationError(
            f"haystack: text needs prose, and {model.name} has no held-out text; set text: FILE, or haystack: noise"
        )
    tokens: list[int] = []
    for document in filter(str.strip, documents):
        tokens += encode(model, document.strip() + "\n")
        if len(tokens) >= 4 * least:
            break
    if not tokens:
        raise EvaluationError(f"text: {text or 'the held-out text of the run'} is empty")
    return Filler(np.asarray(tokens))


def _read(path: Path) -> str:
    try:
        return read_text(path, error=EvaluationError)
    except EvaluationError as error:
        raise EvaluationError(f"text: {error}") from error


def encode(model: ModelFacts, text: str) -> list[int]:
    """Tokens of a text, without a start and without an end."""
    return encode_each(model, [text])[0]


def encode_each(model: ModelFacts, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each of several texts, as `encode`, in one call of the tokenizer."""
    assert model.tokenizer is not None, "the task needs text"
    return tokenizers.encode_each(model.tokenizer, texts)


def most_tokens(model: ModelFacts, texts: Iterable[str]) -> int:
    """Tokens of the longest of several texts, each with a space before it."""
    return max(map(len, encode_each(model, [f" {text}" for text in texts])))


@dataclass(frozen=True)
class Laid:
    """A prompt of tokens, and where the sentences in it begin, counted in tokens."""

    tokens: tuple[int, ...]
    starts: tuple[int, ...]


def lay(
    head: Sequence[int],
    sentences: Sequence[tuple[float, Sequence[int]]],
    tail: Sequence[int],
    fill: Callable[[int], list[int]],
    length: int,
) -> Laid:
    """head, filler with the sentences at their depths (0: first, 1: last), tail: `length` tokens in all.

    Raises EvaluationError if even without filler it is longer.
    """
    room = room_for(head, [tokens for _, tokens in sentences], tail, length)
    filling = fill(room)
    tokens, starts, used = list(head), {}, 0
    for index in sorted(range(len(sentences)), key=lambda i: sentences[i][0]):
        depth, sentence = sentences[index]
        upto = round(depth * room)
        tokens += filling[used:upto]
        used = max(used, upto)
        starts[index] = len(tokens)
        tokens += sentence
    tokens += [*filling[used:], *tail]
    return Laid(tuple(tokens), tuple(starts[i] for i in range(len(sentences))))


def room_for(head: Sequence[int], sentences: Sequence[Sequence[int]], tail: Sequence[int], length: int) -> int:
    """Tokens of a prompt that are left for filler.  Raises EvaluationError if there are fewer than none."""
    need = len(head) + len(tail) + sum(map(len, sentences))
    if need > length:
        raise EvaluationError(f"lengths: the prompt alone takes {need} tokens of this tokenizer, and {length} are left")
    return length - need


def joined(parts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens of all parts in a row."""
    return list(chain.from_iterable(parts))
