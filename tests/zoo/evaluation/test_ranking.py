"""Options of a prompt that is read once: likelihoods are those of each option in a row of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from tests.zoo.evaluation.subjects import Guesser
from zoo.blocks.registry import config_class
from zoo.data.tokenizers import Bytes
from zoo.evaluation import asking, ranking
from zoo.evaluation.asking import answer, plan
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.memory import Budget
from zoo.evaluation.subject import ZooSubject
from zoo.evaluation.task import Prompt
from zoo.recipe import load_recipe

RECIPES = [*sorted(map(str, Path("recipes/tiny").glob("[!_]*.yaml"))), "recipes/moe/tiny.yaml"]
EXAMPLES = ["gated_linear", "kda", "mamba2"]  # kinds without a tiny recipe


def built(name: str):
    """A model in float32 of a tiny recipe, or of the example of a kind of block, with large weights."""
    settings = ["model.init_std=0.1", "model.logit_softcap=20"]
    if name not in EXAMPLES:
        return zoo.build_model(load_recipe(name, settings)).eval()
    config = load_recipe(RECIPES[0], settings).model
    layers = {"blocks": {"own": {"kind": name, **config_class(name).about.example}}, "layers": "own*2", "n_layers": 2}
    return zoo.build_model(type(config).model_validate(config.model_dump() | layers)).eval()


def prompts() -> list[Prompt]:
    """Prompts of many lengths with options of one to nine tokens, some of them equal at their beginning."""
    rng = np.random.default_rng(0)
    draw = lambda n: tuple(rng.integers(0, 256, n).tolist())  # noqa: E731
    made = []
    for length, n in ((150, 5), (31, 2), (97, 8), (1, 2)):
        options = [draw(int(rng.integers(1, 10))) for _ in range(n - 1)]
        made.append(Prompt(draw(length), 0, ("a",), (*options, (*options[0], 7, 8))))
    return made


def check(name: str, device: str, budget: int, monkeypatch, atol: float) -> None:
    """The budget of a cache lets it hold one option at a time, some of one prompt, or all of several prompts."""
    for where in ("CACHED_CPU", "CACHED_GPU"):
        monkeypatch.setattr(ranking, where, budget)
    subject, asked = ZooSubject.of_model(built(name).to(device), Bytes()), prompts()
    assert subject.has_cache
    found = answer(subject, asked)
    monkeypatch.setattr(asking, "shares_prefix", lambda prompt: False)
    for ours, wanted in zip(found, answer(subject, asked), strict=True):
        np.testing.assert_allclose(ours.loglikelihood, wanted.loglikelihood, rtol=0, atol=atol)


BUDGETS = {name: (700, 1 << 13)[i % 2] for i, name in enumerate([*RECIPES, *EXAMPLES])}


@pytest.mark.parametrize(("name", "budget"), [*BUDGETS.items(), ("recipes/tiny/ansa.yaml", 1)])
def test_likelihoods_are_those_of_each_option_in_a_row_of_its_own(name, budget, monkeypatch):
    check(name, "cpu", budget, monkeypatch, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "budget"), BUDGETS.items())
def test_the_same_on_a_gpu(name, budget, monkeypatch):
    """In float32, whose products a GPU may round to TF32 in the Triton kernels."""
    check(name, "cuda", budget, monkeypatch, atol=5e-2)


def test_a_prompt_is_read_once(monkeypatch):
    subject = ZooSubject.of_model(built("recipes/tiny/full.yaml"), Bytes())
    read, plain = [], subject.model.append
    monkeypatch.setattr(subject.model, "append", lambda t, *rest: read.append(t.shape) or plain(t, *rest))
    monkeypatch.setattr(subject.model, "hidden", lambda *_: pytest.fail("a row of its own"))
    prompt = prompts()[2]
    answer(subject, [prompt])
    longest = max(map(len, prompt.options))
    assert read == [(1, 97), (9, longest - 1)]


@pytest.mark.parametrize("kind", ["no cache", "a layer that cannot be copied"])
def test_a_model_without_caches_reads_every_row(kind, monkeypatch):
    asked = prompts()
    if kind == "no cache":
        subject = Guesser(vocab_size=257, max_len=256, tokenizer=Bytes())
    else:
        subject = ZooSubject.of_model(built("recipes/tiny/full.yaml"), Bytes())
        monkeypatch.delattr("zoo.blocks.cache.AttentionCache.reorder")
    assert not subject.has_cache
    monkeypatch.setattr(
        asking, "option_logs", lambda subject, ranked, *rest: [] if not ranked else pytest.fail("a cache")
    )
    found = answer(subject, asked)
    assert [len(each.loglikelihood) for each in found] == [len(each.options) for each in asked]


@pytest.mark.parametrize("places", [1, 3])
def test_the_head_is_computed_in_parts(places, monkeypatch):
    """However many rows a cache has: a vocabulary of 256,000 tokens would take a megabyte for each."""
    subject, asked = ZooSubject.of_model(built("recipes/tiny/full.yaml"), Bytes()), prompts()
    wanted, parts, head = answer(subject, asked), [], subject.head
    monkeypatch.setattr(subject, "head", lambda hidden: parts.append(len(hidden)) or head(hidden))
    budget = Budget(None)
    monkeypatch.setattr(budget, "places", lambda vocab_size: places)
    for ours, whole in zip(answer(subject, asked, budget=budget), wanted, strict=True):
        np.testing.assert_allclose(ours.loglikelihood, whole.loglikelihood, rtol=0, atol=1e-5)
    assert max(parts) == places


def test_options_and_prompts_that_are_empty_are_refused_by_their_row():
    subject = ZooSubject.of_model(built("recipes/tiny/full.yaml"), Bytes())
    read_once = Prompt((1, 2), 0, ("a",), ((1, 2), (3, 4)))
    for tokens, options, why in (
        ((1,), ((1, 2), (), (3, 4)), "an option"),
        ((), ((1, 2), (3, 4)), "the text before an option"),
        ((), ((1,),), "the text before an option"),
    ):
        with pytest.raises(EvaluationError, match=f"^row 2: {why} has no tokens$"):
            plan(subject, [read_once, read_once, Prompt(tokens, 0, ("a",), options)])


def test_options_of_one_token_share_a_row_and_need_no_cache(monkeypatch):
    subject = ZooSubject.of_model(built("recipes/tiny/full.yaml"), Bytes())
    monkeypatch.setattr(subject.model, "append", lambda *_: pytest.fail("a cache"))
    [found] = answer(subject, [Prompt((5, 6, 7), 0, ("a",), ((1,), (2,), (3,)))])
    with torch.no_grad():
        wanted = torch.log_softmax(subject.model(torch.tensor([[5, 6, 7]]))[0, -1].double(), -1)[1:4]
    assert found.loglikelihood == pytest.approx(wanted.tolist(), abs=1e-5)
