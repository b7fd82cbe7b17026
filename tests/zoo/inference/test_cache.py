"""The cache of whole models: as large as `zoo show` says, and the same logits however the tokens are read."""

import copy
from pathlib import Path

import pytest
import torch

import zoo
from zoo.counting.model_cost import model_cost
from zoo.errors import ZooError
from zoo.recipe import load_recipe

RECIPES = sorted(path for path in Path("recipes").rglob("*.yaml") if not path.name.startswith(("_", "study")))
TINY = [path for path in RECIPES if path.parent.name == "tiny"]


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_cost_is_what_the_tensors_occupy(path):
    model = zoo.build_model(load_recipe(path), device="meta")
    for seq_len in (1000, 8192, 32768):
        cache = model.new_cache(2, seq_len, dtype=torch.bfloat16)
        assert cache.nbytes == 2 * model_cost(model.config, seq_len).cache_held_bytes


@pytest.fixture(scope="module", params=[*TINY, "mixed"], ids=str)
def model(request):
    """A tiny model in float64, of one kind or of several, and 200 tokens, with the logits of the training forward."""
    config = load_recipe(TINY[0] if request.param == "mixed" else request.param).model
    if request.param == "mixed":
        blocks = {
            name: block for path in TINY for name, block in load_recipe(path).model.model_dump()["blocks"].items()
        }
        layers = {"blocks": blocks, "layers": "ansa nsa full local mla ansa gla", "n_layers": 7}
        config = type(config).model_validate(config.model_dump() | layers)
    model = zoo.build_model(config, seed=3).double().eval()
    tokens_BT = torch.randint(config.vocab_size, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, tokens_BT, model(tokens_BT)


@pytest.mark.slow
@pytest.mark.thinned(3)
@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
def test_prompts_in_pieces_give_the_logits_of_training(model, piece):
    model, tokens_BT, expected = model
    length = 90 if piece == 1 else 200  # past every window and block of the recipes, and not for a minute
    cache = model.new_cache(2, 200)
    with torch.no_grad():
        found = torch.cat([model(part, cache=cache) for part in tokens_BT[:, :length].split(piece, 1)], 1)
    torch.testing.assert_close(found, expected[:, :length], rtol=0, atol=1e-9)
    assert cache.length_B.tolist() == [length, length]


def test_prompts_of_different_lengths_go_on_as_if_alone(model):
    """Read a few rows at a time, as long prompts are, then a token at a time, the rows at positions of their own."""
    model, tokens_BT, expected = model
    cache, lengths = model.new_cache(2, 200), torch.tensor([150, 67])
    for b in range(2):
        prompt = tokens_BT[b : b + 1, : lengths[b]]
        logits_BV = model.next_logits(prompt, cache.rows(b, b + 1))
        torch.testing.assert_close(logits_BV[0], expected[b, lengths[b] - 1], rtol=0, atol=1e-9)
    for i in range(40):
        position_B = lengths + i
        logits_BV = model.next_logits(tokens_BT[torch.arange(2), position_B][:, None], cache)
        torch.testing.assert_close(logits_BV, expected[torch.arange(2), position_B], rtol=0, atol=1e-9)
    assert cache.length_B.tolist() == [190, 107]
    cache.reset()
    n_new_B = torch.tensor([50, 9])
    logits_BV = model.next_logits(tokens_BT[:, :50], cache, n_new_B)
    torch.testing.assert_close(logits_BV, expected[torch.arange(2), n_new_B - 1], rtol=0, atol=1e-9)


def test_what_does_not_fit_is_refused():
    model = zoo.build_model(load_recipe("recipes/tiny/full.yaml"))
    cache, tokens_BT = model.new_cache(2, 10), torch.zeros(2, 6, dtype=torch.int64)
    with pytest.raises(ValueError, match="it is for 2 rows; found 1"):
        model(tokens_BT[:1], cache=cache)
    model(tokens_BT, cache=cache)
    with pytest.raises(ValueError, match="a row may hold 10 tokens; found 6 held, 6 to append"):
        model(tokens_BT, cache=cache)
    with pytest.raises(ValueError, match=r"n_new_B \[2\] or None; found T=1, \[3\]"):
        model(tokens_BT[:, :1], cache=cache, n_new_B=torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"rows must be lo < hi within 0..2; found 1, 1"):
        cache.rows(1, 1)


def test_padding_takes_no_room():
    """Rows that come in turn, each padded to the other: 30 columns, of which a row has 20 tokens."""
    model = zoo.build_model(load_recipe("recipes/tiny/ansa.yaml")).double()
    tokens_BT, cache = torch.randint(264, (2, 20), generator=torch.Generator().manual_seed(1)), model.new_cache(2, 20)
    for n_new_B in (torch.tensor([10, 0]), torch.tensor([0, 10])):
        model.next_logits(tokens_BT[:, :10], cache, n_new_B)
    logits_BV = model.next_logits(tokens_BT[:, 10:], cache)
    with torch.no_grad():
        torch.testing.assert_close(logits_BV, model(tokens_BT)[:, -1], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="a row may hold 20 tokens; found 20 held, 1 to append"):
        model.next_logits(tokens_BT[:, :1], cache)


def test_a_row_of_a_cache_is_one_document():
    """Whatever the recipe packs into a row in training."""
    model = zoo.build_model(load_recipe("recipes/tiny/ansa.yaml", ["model.document_mask=true"])).double()
    tokens_BT = torch.randint(264, (2, 50), generator=torch.Generator().manual_seed(1))
    starts_BT, cache = torch.arange(50).expand(2, -1) % 20 == 0, model.new_cache(2, 50)
    with torch.no_grad():
        found = torch.cat([model(part, cache=cache) for part in tokens_BT.split(23, 1)], 1)
        torch.testing.assert_close(found, model(tokens_BT), rtol=0, atol=1e-9)
        assert not torch.allclose(found, model(tokens_BT, starts_BT))
        with pytest.raises(ValueError, match="each of its rows is one document, so document_starts_BT must be None"):
            model(tokens_BT, starts_BT, cache=model.new_cache(2, 50))


def test_a_block_without_a_cache_is_named():
    model = copy.copy(zoo.build_model(load_recipe("recipes/tiny/full.yaml")))
    model.layers[2].attention = torch.nn.Identity()
    with pytest.raises(ZooError, match=r"layer 2: its block \(Identity\) keeps no cache"):
        model.new_cache(1, 8)
