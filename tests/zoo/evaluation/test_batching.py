"""Batches of few shapes: what a GPU runs, and that padding changes no answer, whatever the model is made of."""

from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from tests.zoo.evaluation.subjects import Guesser
from zoo.blocks.registry import config_class
from zoo.data.tokenizers import Bytes
from zoo.evaluation import asking
from zoo.evaluation.asking import Query, answer, ask
from zoo.evaluation.batching import TOKENS_CPU, TOKENS_GPU, Batch, by_length, padded_length
from zoo.evaluation.memory import Budget
from zoo.evaluation.subject import ZooSubject
from zoo.evaluation.task import Choice
from zoo.evaluation.transformers_subject import TransformersSubject
from zoo.recipe import load_recipe

RECIPES = [*sorted(Path("recipes/tiny").glob("[!_]*.yaml")), Path("recipes/moe/tiny.yaml")]
EXAMPLES = ["gated_linear", "kda", "mamba2"]  # kinds without a tiny recipe
RNG = np.random.default_rng(0)
LENGTHS = {  # of tasks in tokens: about what common-sense tasks, passages and long prompts have
    "short": RNG.gamma(4, 6, 9000).astype(int) + 1,
    "middle": RNG.gamma(4, 22, 12000).astype(int) + 5,
    "long": RNG.gamma(2, 90, 3000).astype(int) + 20,
    "few": RNG.gamma(4, 10, 130).astype(int) + 1,
    "prompts": np.full(500, 4096),
}


def batches(lengths: list[int], few_shapes: bool, **settings) -> list[Batch]:
    """All batches of rows of these lengths, where memory is no bound."""
    tokens = TOKENS_GPU if few_shapes else TOKENS_CPU
    cut = by_length(lengths, lambda length: tokens // length, few_shapes=few_shapes, **settings)
    return [batch for batch, _ in Budget(None).in_batches(len(lengths), cut, lambda batch: batch)]


def shapes(lengths, few_shapes: bool) -> set[tuple[int, int]]:
    return {(batch.rows, batch.length) for batch in batches(lengths.tolist(), few_shapes=few_shapes)}


def test_few_shapes_occur_over_several_tasks():
    few, tight = (set().union(*(shapes(each, way) for each in LENGTHS.values())) for way in (True, False))
    assert len(few) <= 25 < 100 < len(tight)
    assert len({length for _, length in few}) <= 20
    padded = sum(b.rows * b.length for each in LENGTHS.values() for b in batches(each.tolist(), few_shapes=True))
    assert padded < 1.25 * sum(each.sum() for each in LENGTHS.values())


@pytest.mark.parametrize("few_shapes", [False, True])
@pytest.mark.parametrize("name", LENGTHS)
def test_every_row_runs_once_the_longest_first_within_the_budget(name, few_shapes):
    lengths = LENGTHS[name].tolist()
    made = batches(lengths, few_shapes=few_shapes)
    order = [i for batch in made for i in batch.indices]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    for batch in made:
        assert batch.rows * batch.length <= (TOKENS_GPU if few_shapes else TOKENS_CPU) or batch.rows == 1
        longest = max(lengths[i] for i in batch.indices)
        if few_shapes:
            assert batch.length == padded_length(longest) >= longest
            assert len(batch.indices) <= batch.rows < 2 * len(batch.indices) or batch.rows == len(batch.indices) == 1
        else:  # a CPU pays for every token of padding
            assert (batch.rows, batch.length) == (len(batch.indices), longest)


def test_lengths_go_up_in_steps_that_meet_every_power_of_two():
    assert [padded_length(n) for n in (1, 16, 17, 33, 65, 128, 129, 1000, 4096, 4097)] == [
        *(16, 16, 32, 48, 80, 128, 160, 1024, 4096, 5120)
    ]
    for n in range(1, 3000):
        assert n <= padded_length(n) <= max(16 * -(-n // 16), 1.25 * n)
        assert padded_length(padded_length(n)) == padded_length(n)
    assert padded_length(1000, longest=1010) == 1010
    assert padded_length(2000, longest=1010) == 2000  # rotary models go past their context


class Parts(Budget):
    """Any number of rows, and logits of so many places at a time."""

    def __init__(self, places: int):
        super().__init__(None)
        self._places = places

    def places(self, vocab_size: int) -> int:
        return self._places


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Batches of few shapes, small ones, so that rows and places are split everywhere."""
    monkeypatch.setattr(asking, "PLACES_HELD", 64)
    monkeypatch.setattr(
        asking,
        "by_length",
        lambda lengths, rows_at, few_shapes, longest: by_length(
            lengths, lambda n: 1024 // n, few_shapes=True, longest=longest
        ),
    )


def queries(vocab_size: int, longest: int, documents: bool = False) -> list[Query]:
    """Rows of many lengths with one to nine places each; every second holds several documents if that is asked for."""
    rng, made = np.random.default_rng(1), []
    for length in (1, 2, 15, 16, 17, 40, 63, 64, 65, 97, 150, longest - 1, longest, 33, 33, 34):
        places = np.sort(rng.choice(length, min(length, int(rng.integers(1, 10))), replace=False))
        tokens, labels = rng.integers(0, vocab_size, length), rng.integers(0, vocab_size, len(places))
        begins = tuple(np.flatnonzero(rng.random(length) < 0.1).tolist()) if documents and len(made) % 2 else None
        made.append(Query(tuple(tokens.tolist()), tuple(places.tolist()), tuple(labels.tolist()), begins))
    return made


def check_alone(subject, asked, monkeypatch) -> None:
    """Replies of rows together are those of each row alone, without padding, its logits in one part."""
    together = ask(subject, asked, budget=Parts(7))
    monkeypatch.setattr(asking, "by_length", by_length)
    for query, reply in zip(asked, together, strict=True):
        [alone] = ask(subject, [query], budget=Parts(1 << 20))
        np.testing.assert_allclose(reply.loglikelihood, alone.loglikelihood, rtol=0, atol=2e-5)
        assert reply.likeliest.tolist() == alone.likeliest.tolist()


def built(name: str):
    """A model of a tiny recipe, or of the example of a kind of block, with weights large enough to matter."""
    settings = ["model.init_std=0.2", "model.logit_softcap=20", "model.document_mask=true"]
    if name not in EXAMPLES:
        return zoo.build_model(load_recipe(name, settings)).double().eval()
    config = load_recipe(RECIPES[0], settings).model
    layers = {"blocks": {"own": {"kind": name, **config_class(name).about.example}}, "layers": "own*2", "n_layers": 2}
    return zoo.build_model(type(config).model_validate(config.model_dump() | layers)).double().eval()


@pytest.mark.parametrize("name", [*map(str, RECIPES), *EXAMPLES])
def test_padding_changes_no_reply(as_on_a_gpu, monkeypatch, name):
    subject = ZooSubject.of_model(built(name), Bytes())
    asked = queries(subject.vocab_size, subject.max_len, documents=True)
    check_alone(subject, asked, monkeypatch)


def test_the_trunk_runs_once_a_batch_however_many_logits_it_has(as_on_a_gpu, monkeypatch):
    subject = ZooSubject.of_model(built("recipes/tiny/full.yaml"), Bytes())
    asked = queries(subject.vocab_size, subject.max_len)
    calls, hidden = [], subject.model.hidden
    monkeypatch.setattr(
        subject.model, "hidden", lambda tokens, starts: calls.append(tokens.shape) or hidden(tokens, starts)
    )
    ask(subject, asked, budget=Parts(2))
    lengths = [len(query.tokens) for query in asked]
    cut = by_length(lengths, lambda n: 1024 // n, few_shapes=True, longest=subject.max_len)
    made = [batch for batch, _ in Budget(None).in_batches(len(lengths), cut, lambda batch: batch)]
    assert calls == [(batch.rows, batch.length) for batch in made]


def test_options_of_a_model_that_gives_logits_alone_are_split_by_equal_rows(as_on_a_gpu, monkeypatch):
    subject = Guesser(vocab_size=257, max_len=128, tokenizer=Bytes())
    rows, plain = [], subject.logits
    monkeypatch.setattr(subject, "logits", lambda tokens, *rest: rows.append(len(tokens)) or plain(tokens, *rest))
    examples = [Choice((("context " * (n % 9 + 1), " yes"), ("context", f" {n} is no")), 0) for n in range(30)]
    together = answer(subject, examples, budget=Parts(40))
    assert set(rows) == {4, 8}
    for example, found in zip(examples, together, strict=True):
        assert answer(subject, [example])[0].loglikelihood == pytest.approx(found.loglikelihood, rel=1e-9)


def transformers_model(name: str):
    """A tiny model of transformers: rotary; learned positions, with a limit; scores that are scaled and capped."""
    import transformers

    size = {
        "vocab_size": 97,
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    size |= {"max_position_embeddings": 200, "initializer_range": 0.3}
    config = {
        "llama": lambda: transformers.LlamaConfig(**size),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=97, n_positions=200, n_embd=32, n_layer=2, n_head=2),
        "gemma2": lambda: transformers.Gemma2Config(
            **size, head_dim=16, num_key_value_heads=1, final_logit_softcapping=5.0, sliding_window=32
        ),
        "cohere": lambda: transformers.CohereConfig(**size, logit_scale=0.25),
    }[name]()
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "places"), [("llama", 7), ("gpt2", 2), ("gemma2", 100), ("cohere", 1)])
def test_padding_changes_no_reply_of_transformers(as_on_a_gpu, monkeypatch, name, places):
    """Against the logits of all positions of the row alone, as the model's own forward returns them."""
    pytest.importorskip("transformers")
    subject = TransformersSubject.of_model(transformers_model(name), max_len=200)
    asked = queries(subject.vocab_size, 200)
    at_once, plain = [], subject.model.forward

    def forward(input_ids, logits_to_keep, **rest):
        at_once.append(len(input_ids) * len(logits_to_keep))
        return plain(input_ids=input_ids, logits_to_keep=logits_to_keep, **rest)

    monkeypatch.setattr(subject.model, "forward", forward)
    replies = ask(subject, asked, budget=Parts(places))
    assert max(at_once) <= places
    monkeypatch.undo()
    for query, reply in zip(asked, replies, strict=True):
        with torch.no_grad():
            logits_TV = subject.model(input_ids=torch.tensor([query.tokens]), use_cache=False).logits[0]
        logs_NV = torch.log_softmax(logits_TV.double(), -1)[list(query.places)]
        wanted = logs_NV.gather(1, torch.tensor(query.labels)[:, None])[:, 0]
        np.testing.assert_allclose(reply.loglikelihood, wanted.numpy(), rtol=0, atol=1e-4)
        assert reply.likeliest.tolist() == logs_NV.argmax(1).tolist()
