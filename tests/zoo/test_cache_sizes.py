"""The cache by kind of layer against the whole, for every recipe."""

from pathlib import Path

import pytest

from zoo.counting.cache_sizes import cache_sizes
from zoo.counting.model_cost import model_cost
from zoo.recipe import load_recipe

RECIPES = sorted(path for path in Path("recipes").rglob("*.yaml") if not path.name.startswith(("_", "study")))


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_the_kinds_make_up_the_whole(path):
    model = load_recipe(path).model
    for seq_len in (1, 1000, 8192):
        sizes, cost = cache_sizes(model, seq_len), model_cost(model, seq_len)
        assert sum(size.layers for size in sizes.values()) == len(model.expanded())
        assert sum(size.nominal_bytes for size in sizes.values()) == cost.cache_nominal_bytes
        assert sum(size.held_bytes for size in sizes.values()) == cost.cache_held_bytes


def test_layers_of_one_kind_count_together_and_in_any_dtype():
    blocks = {"kind": "window", "n_heads": 4, "n_kv_heads": 1, "window": 8}
    settings = ["model.blocks.other={kind: window, n_heads: 4, n_kv_heads: 2, window: 4}", "model.layers=local other*2"]
    model = load_recipe("recipes/tiny/full.yaml", [f"model.blocks.local={blocks}".replace("'", ""), *settings]).model
    (kind, size), *others = cache_sizes(model, 100, 4).items()
    assert (kind, size.layers, others) == ("window", 3, [])
    assert size.nominal_bytes_per_token == 4 * (2 * 32 + 2 * 4 * 32)
    assert size.held_bytes == 4 * (8 * 2 * 32 + 2 * 4 * 4 * 32)
    assert size.held_bytes_per_token == size.held_bytes / 100
