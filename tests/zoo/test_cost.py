"""The cost of a model against sums written out by hand."""

import pytest

from zoo.counting.model_cost import model_cost
from zoo.recipe import ModelConfig

FULL = {"kind": "full", "n_heads": 4, "n_kv_heads": 2}


def model(**changes) -> ModelConfig:
    settings = {"d_model": 64, "vocab_size": 300, "max_seq_len": 32, "ffn": {"kind": "swiglu", "d_ff": 96}}
    return ModelConfig.model_validate({**settings, "blocks": {"a": FULL}, "layers": "a*3", **changes})


def test_parameters_by_part():
    attention = 64 * 64 + 2 * 64 * 2 * 16 + 64 * 64
    expected = {"embedding": 300 * 64, "attention": 3 * attention, "ffn": 3 * 3 * 64 * 96, "norms": 7 * 64, "head": 0}
    cost = model_cost(model(), 32)
    assert cost.parameters == {**expected, "total": sum(expected.values())}
    untied = model_cost(model(tie_embeddings=False, ffn={"kind": "gelu", "d_ff": 96}), 32)
    assert untied.parameters["head"] == 300 * 64
    assert untied.parameters["ffn"] == 3 * 2 * 64 * 96


def test_flops_are_two_a_weight_and_the_visible_pairs():
    seq_len, heads, width = 32, 4, 16
    pairs = seq_len * (seq_len + 1) / 2
    attention = 3 * (2 * (64 * 64 + 2 * 64 * 32 + 64 * 64) + 2 * 2 * heads * width * pairs / seq_len)
    flops = model_cost(model(), seq_len)
    assert flops.flops_by_part == pytest.approx({"attention": attention, "ffn": 6 * 3 * 64 * 96, "head": 2 * 300 * 64})
    assert flops.flops_per_token == pytest.approx(sum(flops.flops_by_part.values()))


def test_caches_sum_over_layers_and_parts():
    window = {"kind": "window", "n_heads": 4, "n_kv_heads": 1, "window": 8}
    mixed = model(blocks={"a": FULL, "w": window}, layers="a w*2")
    cost = model_cost(mixed, 32)
    assert cost.cache_nominal_bytes == 2 * 32 * (64 + 2 * 32)
    assert cost.nominal_bytes_per_token == 2 * (64 + 2 * 32)
    assert cost.cache_held_bytes == 2 * (32 * 64 + 2 * 8 * 32)


def test_overrides_of_one_layer_are_counted():
    changed = model(layers=["a*2", {"use": "a", "with": {"n_kv_heads": 1}}])
    difference = model_cost(model(), 32).parameters["total"] - model_cost(changed, 32).parameters["total"]
    assert difference == 2 * 64 * 16
