"""How a model is asked: every likelihood is that of the right tokens at the right places, worked out one by one."""

import math

import numpy as np
import pytest
import torch

from tests.zoo.evaluation.subjects import Guesser
from zoo.data.tokenizers import Bytes
from zoo.evaluation.asking import answer
from zoo.evaluation.task import Choice, Labelled, Prompt

MOST = 16
START = Bytes().end_of_document


@pytest.fixture
def model():
    """Its logits depend on every token before a place, and on no other: a place off by one gives another number."""
    return Guesser(vocab_size=257, max_len=MOST, tokenizer=Bytes())


def alone(model, seen: list[int], label: int) -> float:
    """Log-likelihood of a token after the tokens `seen`, in a row of its own."""
    tokens = torch.tensor([seen])
    logits_1V = model.logits(tokens, torch.tensor([0]), torch.tensor([len(seen) - 1]))
    return float(torch.log_softmax(logits_1V.double(), 1)[0, label])


def of_text(model, context: str, continuation: str) -> float:
    """Nats of a continuation, whose context is cut at its left to leave at most MOST tokens of input."""
    spaces = len(context) - len(context.rstrip())
    tokens = list((context + continuation).encode()) if context.strip() else [START, *(context + continuation).encode()]
    n = len(continuation.encode()) + spaces
    window = tokens[-(MOST + 1) :]
    return sum(alone(model, window[:at], window[at]) for at in range(len(window) - n, len(window)))


def test_likelihoods_of_options_of_many_lengths_are_those_of_each_alone(model):
    texts = [
        [("context", " yes"), ("context", " no"), ("context", "!"), ("context", "?")],  # the last two share a row
        [("", " empty"), ("  ", "blank")],
        [("a context that is too long", " é"), ("a context that is too long", " four")],
        [("trailing ", "space"), ("trailing", " space")],
        [("x", "123456789012345"), ("x", "1")],  # with its context exactly as long as the model takes
    ]
    found = answer(model, [Choice(tuple(options), 0) for options in texts])
    for options, chosen in zip(texts, found, strict=True):
        assert chosen.loglikelihood == pytest.approx([of_text(model, *option) for option in options], rel=1e-6)
    assert [chosen.truncated for chosen in found] == [False, False, True, False, False]
    assert found[3].loglikelihood[0] == found[3].loglikelihood[1]


def test_labels_are_asked_at_their_own_places(model):
    rows = [Labelled(np.arange(1, n + 1), np.where(np.arange(n) % 3 == n % 3, 7 * n, -100)) for n in (3, 5, 11, 16)]
    for row, predicted in zip(rows, answer(model, rows), strict=True):
        places = np.flatnonzero(row.labels != -100)
        wanted = [-alone(model, row.tokens[: place + 1].tolist(), int(row.labels[place])) for place in places]
        assert predicted.nats == pytest.approx(wanted, rel=1e-6)


def test_options_of_a_prompt_follow_its_last_token(model):
    prompt = Prompt((1, 2, 3), 0, ("a",), ((4,), (5, 6), (4, 6)))
    [found] = answer(model, [prompt])
    after = [alone(model, [1, 2, 3], 4), alone(model, [1, 2, 3], 5) + alone(model, [1, 2, 3, 5], 6)]
    assert found.loglikelihood[:2] == pytest.approx(after, rel=1e-6)
    assert math.isclose(found.loglikelihood[2], after[0] + alone(model, [1, 2, 3, 4], 6), rel_tol=1e-6)
