"""Cost against the built module, against counting by hand, and against the table of caches."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo.blocks import build, config_class
from zoo.blocks.base import Context
from zoo.blocks.cost import compression_pairs, selection_pairs, window_pairs
from zoo.blocks.patterns.compression import BlockMLP
from zoo.blocks.projections import latent

GRID = [
    ("full", {}),
    ("full", {"n_heads": 8, "n_kv_heads": 1, "head_dim": 40, "v_head_dim": 24, "qk_norm": True}),
    ("window", {"n_kv_heads": 4}),
    ("full", {"n_kv_heads": 4, "qkv_bias": True, "output_bias": True, "output_gate": "head", "rope_fraction": 0.5}),
    ("window", {"qk_norm": True, "qk_norm_over": "width", "output_gate": "channel", "v_head_dim": 24}),
    ("full", {"qk_norm": True, "qk_norm_scale": False, "qk_norm_place": "after"}),
    ("chunked", {"n_kv_heads": 4, "chunk": 64}),
    ("full", {"sinks": True, "score_softcap": 30.0, "n_kv_heads": 4}),
    ("gla", {"sinks": True, "window": 64}),
    ("mla", {"rope_dim": 0, "output_bias": True}),
    ("mla", {"latent_norm": False, "q_rank": 48}),
    ("ansa", {"latent_norm": False, "gate_bias": True}),
    ("nsa", {"separate_kv": True, "qkv_bias": True, "qk_norm": True, "qk_norm_over": "width", "output_gate": "head"}),
    ("mla", {}),
    ("mla", {"q_rank": 48, "v_head_dim": 24, "window": 64}),
    ("gla", {}),
    ("gla", {"n_kv_heads": 4, "n_latent_heads": 4, "kv_rank": 64, "rope_dim": 8}),
    ("nsa", {}),
    ("nsa", {"pooling": "mlp", "separate_kv": True, "qk_norm": True, "v_head_dim": 24}),
    ("ansa", {}),
    ("ansa", {"pooling": "mlp", "n_latent_heads": 2, "q_rank": 48, "kv_rank": 64}),
    ("attention", {"projection": {"kind": "mla"}, "patterns": [{"kind": "full"}, {"kind": "window"}]}),
    ("attention", {"patterns": [{"kind": "compression", "pooling": "mlp"}]}),
]


@pytest.mark.parametrize(("kind", "fields"), GRID)
def test_parameters_are_those_of_the_module(kind, fields):
    config = config_class(kind)(**fields)
    for part in config.parts or (None,):
        with torch.device("meta"):
            module = build(config, 512, part)
        counted = config.cost(512, 100, part)
        assert counted.total_parameters == sum(p.numel() for p in module.parameters())
        assert counted.parameters["output"] == module.output.weight.numel()


@pytest.fixture
def flops_of_maps(monkeypatch):
    """What torch counts in the maps of latent heads, call by call; a projection applies them without their modules."""
    counts, apply = [], latent.per_head

    def counting(*arguments):
        with FlopCounterMode(display=False) as counter:
            found = apply(*arguments)
        counts.append(counter.get_total_flops())
        return found

    monkeypatch.setattr(latent, "per_head", counting)
    return counts


@pytest.mark.parametrize(("kind", "fields"), GRID)
def test_flops_of_linear_maps_are_those_torch_counts(kind, fields, flops_of_maps):
    config = config_class(kind)(**fields)
    parts = ("query", "key_value", "key_value_up", "pooling", "gate", "output_gate", "output")
    for part in config.parts or (None,):
        module, context = build(config, 128, part), Context.for_tokens(1, 150)
        with FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, 150, 128), context)
        leaves = {name for name, child in module.named_modules() if isinstance(child, torch.nn.Linear)}
        pools = {name for name, child in module.named_modules() if isinstance(child, BlockMLP)}
        leaves = pools | {name for name in leaves if name.rpartition(".")[0] not in pools}  # a pool may split its maps
        counts = counter.get_flop_counts()
        maps = {name for name in leaves if isinstance(module.get_submodule(name), latent.PerHeadLinear)}
        measured = sum(sum(counts[f"Attention.{name}"].values()) for name in leaves - maps) + sum(flops_of_maps)
        flops_of_maps.clear()
        assert sum(config.cost(128, 150, part).flops.get(name, 0) for name in parts) == measured


@pytest.mark.parametrize("seq_len", [1, 2, 7, 16, 33, 100])
def test_pairs_are_counted_exactly(seq_len):
    for window in (1, 5, 16, 200):
        assert window_pairs(seq_len, window) == sum(min(t + 1, window) for t in range(seq_len))
    for block, stride in ((4, 2), (8, 8), (32, 16), (1, 1), (15, 5)):
        seen = [sum(j * stride + block - 1 <= t for j in range(seq_len)) for t in range(seq_len)]
        for group in (1, 2, 4, 6):
            assert compression_pairs(seq_len, block, stride, group) == sum(seen[::group])
    for block, n in ((4, 3), (16, 1), (16, 4), (2, 50)):
        pairs = sum((min(n, t // block + 1) - 1) * block + t % block + 1 for t in range(seq_len))
        assert selection_pairs(seq_len, block, n) == pairs


def test_pairs_of_the_longest_row_are_counted_at_once():
    blocks = 2**31 - 16
    assert compression_pairs(2**31 - 1, 16, 1) == blocks * (blocks + 1) // 2


def test_attention_flops_follow_the_pairs():
    flops = config_class("nsa")(n_heads=8, n_kv_heads=2, head_dim=32, v_head_dim=16).cost(256, 1000).flops
    assert flops["window"] == 2 * 8 * (32 + 16) * window_pairs(1000, 512)
    assert flops["selection"] == 2 * 8 * (32 + 16) * selection_pairs(1000, 64, 16)
    assert flops["compression"] == 2 * 8 * (32 + 16) * compression_pairs(1000, 32, 16)
    assert flops["choice"] == 2 * 8 * 32 * compression_pairs(1000, 32, 16)
    local = config_class("ansa")(n_heads=8, n_kv_heads=2).cost(256, 1000, "local").flops
    assert local["window"] == 2 * 8 * (32 + 16 + 32) * window_pairs(1000, 512)


@pytest.mark.parametrize("seq_len", [256, 8192])
def test_cache_is_that_of_the_table(seq_len):
    """docs/blocks.md, "Cache": nominal and held elements at d_model 1024, 16 heads of 64, K = 4."""
    recent, heads = min(seq_len, 512), {"n_heads": 16, "n_kv_heads": 4}
    latent = {"n_heads": 16, "kv_rank": 224, "rope_dim": 32}
    rows = [
        ("full", heads, None, 512 * seq_len, 512 * seq_len),
        ("window", heads, None, 512 * seq_len, 512 * recent),
        ("mla", latent, None, 256 * seq_len, 256 * seq_len),
        ("mla", latent | {"window": 512}, None, 256 * seq_len, 256 * recent),
        ("gla", latent, None, 256 * seq_len, 256 * seq_len),
        ("nsa", heads, None, 512 * seq_len, 512 * seq_len + 512 * seq_len // 16),
        ("ansa", {}, "local", 256 * seq_len, 256 * recent),
        ("ansa", {}, "global", 256 * seq_len, 256 * seq_len + 256 * seq_len // 16),
    ]
    for kind, fields, part, nominal, held in rows:
        cost = config_class(kind)(**fields).cost(1024, seq_len, part)
        assert (cost.cache_nominal_elements, cost.cache_held_elements) == (nominal, held), kind


def test_cache_of_separate_keys_and_of_compression_alone():
    """A pattern keeps what it may still read: compression its unfinished block, a window its last w tokens."""
    nsa = config_class("nsa")(separate_kv=True).cost(1024, 8192)
    assert nsa.cache_nominal_elements == 3 * 512 * 8192
    assert nsa.cache_held_elements == 512 * (32 + 8192 + 512 + 8192 // 16)
    patterns = [{"kind": "compression"}, {"kind": "window", "window": 100}]
    both = config_class("attention")(projection={"kind": "gqa", "n_kv_heads": 4}, patterns=patterns)
    assert both.cost(1024, 8192).cache_held_elements == 512 * (100 + 8192 // 16)


def test_seq_len_must_be_positive():
    with pytest.raises(ValueError, match="seq_len must be at least 1; found 0"):
        config_class("full")().cost(1024, 0)
