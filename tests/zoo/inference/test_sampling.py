"""Draws follow the distribution that the settings say, on rows of their own."""

import pytest
import torch

from zoo.inference.errors import GenerationError
from zoo.inference.sampling import Sampler, Sampling, penalised, truncated

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -torch.inf], [0.0, 0.0, 3.0, 0.0, 0.0]])


def kept(**settings) -> list[list[int]]:
    left = truncated(LOGITS, Sampling(**settings))
    return [row.isfinite().nonzero().flatten().tolist() for row in left]


def frequencies(sampling: Sampling, logits: torch.Tensor, draws: int = 20_000) -> torch.Tensor:
    sampler = Sampler(sampling, [[0]] * draws, len(logits), len(logits), "cpu")
    return sampler(logits.expand(draws, -1)).bincount(minlength=len(logits)) / draws


def test_top_k_keeps_the_k_largest_and_ties_with_the_last():
    assert kept(top_k=2) == [[0, 1], [0, 1, 2, 3, 4]]
    assert kept(top_k=1) == [[0], [2]]
    assert kept(top_k=99) == [[0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_top_p_keeps_the_fewest_that_make_up_the_share():
    # Row 0: 0.644, 0.237, 0.087, 0.032.  Row 1: 0.834, and 0.0415 four times.
    assert kept(top_p=0.64) == [[0], [2]]
    assert kept(top_p=0.65) == [[0, 1], [2]]
    assert kept(top_p=0.95)[0] == [0, 1, 2]
    assert kept(top_p=1e-9) == [[0], [2]]
    assert kept(top_p=1.0) == [[0, 1, 2, 3], [0, 1, 2, 3, 4]]


def test_min_p_keeps_what_is_near_the_most_likely():
    assert kept(min_p=0.36) == [[0, 1], [2]]
    assert kept(min_p=0.0) == [[0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert kept(min_p=1.0) == [[0], [2]]


def test_each_truncation_sees_what_the_one_before_has_left():
    # Of the two largest alone the first has 0.731, so 0.7 of the probability is that one; of all it has 0.644.
    assert kept(top_p=0.7)[0] == [0, 1]
    assert kept(top_k=2, top_p=0.7)[0] == [0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature):
    found = frequencies(Sampling(temperature=temperature), LOGITS[0])
    torch.testing.assert_close(found, (LOGITS[0] / temperature).softmax(0), atol=0.015, rtol=0)


@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-40, 1e-6])
def test_a_temperature_near_0_takes_the_most_likely(temperature):
    logits = LOGITS[0].roll(1) * 100
    assert frequencies(Sampling(temperature=temperature), logits, 10).tolist() == [0, 1, 0, 0, 0]


def test_the_seed_decides():
    def draw(seed):
        return Sampler(Sampling(seed=seed), [[0]] * 500, 5, 5, "cpu")(LOGITS[:1].expand(500, -1)).tolist()

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_repetition_penalty_knows_the_prompt_and_what_was_drawn():
    seen_BV = torch.tensor([[True, False, True, True, False]] * 2)
    expected = torch.tensor([[1.0, 1.0, 0.0, -2.0, -torch.inf], [0.0, 0.0, 1.5, 0.0, 0.0]])
    torch.testing.assert_close(penalised(LOGITS, seen_BV, 2.0), expected)
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=10.0), [[0], [4]], 5, 5, "cpu")
    assert sampler(LOGITS).tolist() == [1, 2]
    assert sampler(LOGITS).tolist() == [0, 2], "0.2 and 0.3 are still more than the others have"
    assert sampler(LOGITS + 0.4).tolist() == [2, 0]


def test_numbers_that_no_tokenizer_knows_are_never_drawn():
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.1), [[3], [3]], 5, 2, "cpu")
    assert sampler(LOGITS).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature: must be at least 0; found -0.1"),
        ({"temperature": float("nan")}, "temperature: must be at least 0; found nan"),
        ({"top_k": 0}, "top_k: must be at least 1; found 0"),
        ({"top_p": 0.0}, "top_p: must be above 0 and at most 1; found 0"),
        ({"min_p": 1.5}, r"min_p: must be within 0\.\.1; found 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: must be above 0; found 0"),
        ({"seed": -1}, r"seed: must be within 0\.\.2\*\*63 - 1; found -1"),
        ({"top_k": 0, "top_p": 2.0}, "(?s)top_k: .*top_p: "),
    ],
)
def test_settings_out_of_bounds(settings, message):
    with pytest.raises(GenerationError, match=message):
        Sampling(**settings)


def test_it_agrees_with_transformers():
    transformers = pytest.importorskip("transformers")
    logits_BV = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)) * 3
    sampling = Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.02)
    theirs = logits_BV
    for processor in (
        transformers.TemperatureLogitsWarper(0.7),
        transformers.TopKLogitsWarper(40),
        transformers.TopPLogitsWarper(0.9),
        transformers.MinPLogitsWarper(0.02),
    ):
        theirs = processor(None, theirs)
    torch.testing.assert_close(truncated(logits_BV / 0.7, sampling), theirs)
