"""Batches within a budget of bytes: no answer depends on it, and memory that runs out makes batches smaller."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import zoo
from tests.zoo.evaluation.subjects import Guesser
from zoo.data.tokenizers import Bytes
from zoo.evaluation.asking import GREEDY_ROWS, answer
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.memory import LEAST_PLACES, LOGIT_BYTES, Budget
from zoo.evaluation.subject import ZooSubject
from zoo.evaluation.task import Choice, Labelled, Prompt
from zoo.evaluation.transformers_subject import TransformersSubject
from zoo.recipe import load_recipe
from zoo.training.scores import TrainingSubject

RECIPES = sorted(map(str, Path("recipes/tiny").glob("[!_]*.yaml")))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One thread for tiny models, and no search for garbage among all modules of the tests, which takes 0.3 s."""
    torch.set_num_threads(1)
    monkeypatch.setattr("zoo.evaluation.memory.gc.collect", lambda: 0)


def built(name: str = "recipes/tiny/full.yaml") -> ZooSubject:
    settings = ["model.init_std=0.1", "model.logit_softcap=20"]
    return ZooSubject.of_model(zoo.build_model(load_recipe(name, settings)).eval(), Bytes())


def prompts(generate: int = 0) -> list[Prompt]:
    """Prompts of different lengths; the shorter of two has the longer options."""
    rng = np.random.default_rng(0)
    draw = lambda n: tuple(rng.integers(0, 256, n).tolist())  # noqa: E731
    shapes = ((90, (2, 3, 1)), (80, (30, 2)), (40, (5, 5, 5, 5, 5)), (20, (2, 2)))
    return [Prompt(draw(n), generate, ("a",), tuple(map(draw, options))) for n, options in shapes]


def rows(vocab_size: int = 257) -> list[Labelled]:
    rng = np.random.default_rng(1)
    return [Labelled(*rng.integers(0, vocab_size, (2, n))) for n in (100, 70, 70, 30, 8)]


def alone(subject, asked: list) -> list:
    """The answer to each example in a batch of its own, each option in a row of its own."""
    apart = [Choice(tuple((each.tokens, option) for option in each.options), 0) for each in asked]
    return [answer(subject, [each])[0].loglikelihood for each in apart]


@pytest.mark.parametrize("name", RECIPES)
def test_rows_of_caches_take_the_bytes_that_are_counted(name):
    """Lengths are rounded up before they are counted, so that there are few of them."""
    subject = built(name)
    for length in (1, 16, 48, 100, 128):
        cache = subject.new_cache(3, length)
        assert 3 * subject.cache_row_bytes(length) >= cache.nbytes
        if length in (16, 48, 128):
            assert 3 * subject.cache_row_bytes(length) == cache.nbytes
    assert 0 < subject.row_bytes(16) < subject.row_bytes(128)


def test_a_budget_is_shared_by_rows_and_by_what_comes_on_top():
    budget = Budget(1000)
    assert [budget.rows(100, 50), budget.rows(100, 5), budget.rows(100, 50, 301), budget.rows(1001, 50)] == [
        10,
        5,
        6,
        0,
    ]
    assert Budget(1000).rows(0, 50) == 50  # nothing is known of the model
    assert Budget(None).rows(1 << 60, 50) == 50  # nothing of the device
    assert Budget(4 * LOGIT_BYTES * 257 * 100).places(257) == 100
    assert Budget(0).places(257) == LEAST_PLACES


@pytest.mark.parametrize(
    ("kind", "kilobytes"),
    [("full", 0), ("full", 500), ("full", 1500), ("ansa", 300), ("gated_deltanet", 800), ("full", 40_000)],
)
def test_answers_do_not_depend_on_the_budget(kind, kilobytes, monkeypatch):
    subject, asked, told = built(f"recipes/tiny/{kind}.yaml"), prompts(generate=3), []
    wanted = alone(subject, asked)
    texts = [found.text for prompt in asked for found in answer(subject, [prompt])]
    caches, plain = [], subject.model.new_cache
    monkeypatch.setattr(subject.model, "new_cache", lambda *rest: caches.append(plain(*rest)) or caches[-1])
    found = answer(subject, asked, budget=Budget(1000 * kilobytes, told.append))
    for ours, logs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.loglikelihood, logs, rtol=0, atol=1e-4)
    assert [each.text for each in found] == texts
    assert all(cache.nbytes <= 1000 * kilobytes or cache.batch == 1 for cache in caches)
    if kilobytes == 0:
        assert told == ["no cache of 2 x 110 tokens fits: each option is read with its prompt"]


def test_few_bytes_cut_options_and_prompts_apart(monkeypatch):
    """As many caches as parts: one for each prompt with some of its options, then one for several prompts."""
    subject, asked, shapes, plain = built(), prompts(), [], ZooSubject.new_cache
    monkeypatch.setattr(ZooSubject, "new_cache", lambda self, rows, n: shapes.append((rows, n)) or plain(self, rows, n))
    per_row, read = subject.cache_row_bytes(110), subject.row_bytes(110)
    answer(subject, asked, budget=Budget(2 * per_row + read, pytest.fail))
    assert {count for count, _ in shapes[:2]} == {2}
    assert len(shapes) == len(asked)
    shapes.clear()
    answer(subject, asked, budget=Budget(1 << 40, pytest.fail))
    assert shapes == [(4 * 6, 120)]


@pytest.mark.parametrize("fails_beyond", [1, 2, 3])
def test_rows_that_run_out_of_memory_are_cut_in_two(fails_beyond, monkeypatch):
    subject, asked, told, sizes = built(), rows(), [], []
    wanted = [answer(subject, [each])[0] for each in asked]
    plain = subject.model.hidden

    def hidden(tokens_BT, starts_BT):
        if len(tokens_BT) > fails_beyond:
            raise torch.OutOfMemoryError
        sizes.append(len(tokens_BT))
        return plain(tokens_BT, starts_BT)

    monkeypatch.setattr(subject.model, "hidden", hidden)
    done = []
    found = answer(subject, asked, done.append, Budget(None, told.append))
    for ours, one in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.nats, one.nats, rtol=0, atol=1e-4)
    assert sum(sizes) == sum(done) == len(asked)
    assert max(sizes) <= fails_beyond
    assert told[0] == "out of memory with 5 x 100 tokens: smaller batches from here on"


@pytest.mark.slow
def test_options_and_generation_that_run_out_of_memory_go_on_with_smaller_caches(monkeypatch):
    subject, asked, told = built(), prompts(generate=3), []
    wanted, texts = alone(subject, asked), [each.text for each in answer(subject, asked)]
    plain = subject.model.new_cache

    def new_cache(rows, *rest):
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(rows, *rest)

    monkeypatch.setattr(subject.model, "new_cache", new_cache)
    found = answer(subject, asked, budget=Budget(None, told.append))
    for ours, logs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.loglikelihood, logs, rtol=0, atol=1e-4)
    assert [each.text for each in found] == texts
    assert told
    assert all(
        line.startswith("out of memory with ") and line.endswith("smaller batches from here on") for line in told
    )


@pytest.mark.slow
def test_a_cache_that_never_fits_is_done_without(monkeypatch):
    subject, asked, told = built(), prompts()[2:], []
    wanted = alone(subject, asked)

    def new_cache(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(subject, "new_cache", new_cache)
    for ours, logs in zip(answer(subject, asked, budget=Budget(None, told.append)), wanted, strict=True):
        np.testing.assert_allclose(ours.loglikelihood, logs, rtol=0, atol=1e-4)
    assert sum(line.endswith("each option is read with its prompt") for line in told) == 1


def test_a_row_that_does_not_fit_alone_is_refused_in_one_line(monkeypatch):
    subject, told = built(), []

    def hidden(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(subject.model, "hidden", hidden)
    with pytest.raises(EvaluationError, match=r"^out of memory with 1 x 100 tokens; shorter rows or a narrower dtype"):
        answer(subject, rows()[:1], budget=Budget(None, told.append))
    assert told == ["out of memory with 1 x 100 tokens: the logits are computed in smaller parts from here on"]


def test_logits_that_do_not_fit_are_computed_in_smaller_parts(monkeypatch):
    subject, asked, told = built(), rows()[:1], []
    [wanted], plain = answer(subject, asked), subject.head

    def head(hidden_NC):
        if len(hidden_NC) > LEAST_PLACES:
            raise torch.OutOfMemoryError
        return plain(hidden_NC)

    monkeypatch.setattr(subject, "head", head)
    [found] = answer(subject, asked, budget=Budget(None, told.append))
    np.testing.assert_allclose(found.nats, wanted.nats, rtol=0, atol=1e-5)
    assert len(told) == 1


def test_other_errors_and_calls_that_other_processes_take_part_in_are_not_repeated(monkeypatch):
    subject, told = built(), []
    for error, budget in (
        (ValueError("of its own"), Budget(None, told.append)),
        (RuntimeError("of its own"), Budget(None, told.append)),
        (torch.OutOfMemoryError("of its own"), Budget(None, told.append, repeats=False)),
    ):
        calls = []

        def hidden(*_, error=error, calls=calls):
            calls.append(1)
            raise error

        monkeypatch.setattr(subject.model, "hidden", hidden)
        with pytest.raises(type(error), match="of its own"):
            answer(subject, rows(), budget=budget)
        assert (len(calls), told) == (1, [])
    assert Budget.of(subject)._repeats
    sharded = object.__new__(TrainingSubject)
    sharded.device, sharded.repeats = torch.device("cpu"), False
    assert not Budget.of(sharded)._repeats


def test_a_model_that_states_no_bytes_is_bound_by_tokens_alone():
    model = Guesser(vocab_size=257, max_len=256, tokenizer=Bytes())
    found, wanted = (answer(model, rows(), budget=Budget(n)) for n in (1, 1 << 40))
    for ours, one in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.nats, one.nats, rtol=1e-9)
    assert GREEDY_ROWS > 1


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (("MambaConfig", {"hidden_size": 32, "intermediate_size": 64}), 6 * 32 + 3 * 64),
        (("RwkvConfig", {"hidden_size": 32}), 6 * 32 + 3 * 128),
        (("BloomConfig", {"hidden_size": 32, "n_head": 2}), 6 * 32 + 3 * 128 + 2 * 2 * 10),
        (
            ("Gemma3nTextConfig", {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": [64, 80]}),
            6 * 32 + 3 * 80 + 2 * 8 * 10,
        ),
    ],
    ids=lambda case: case[0] if isinstance(case, tuple) else "",
)
def test_every_architecture_of_transformers_has_a_count(config, wanted):
    """Of models without attention too, and of layers that differ in width."""
    transformers = pytest.importorskip("transformers")
    name, sizes = config
    made = getattr(transformers, name)(**sizes)
    made._attn_implementation = "eager"
    subject = object.__new__(TransformersSubject)
    subject.model = SimpleNamespace(config=made, dtype=torch.bfloat16)
    if name in ("MambaConfig", "RwkvConfig"):
        assert not hasattr(made, "num_attention_heads")
    assert subject.row_bytes(10) == 2 * 10 * wanted
