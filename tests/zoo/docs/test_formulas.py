"""Formulas of cost: each gives what `cost` counts, for every kind and the settings that change a formula."""

import pytest

from zoo.blocks import config_class
from zoo.docs import formulas
from zoo.errors import ZooError

SETTINGS = [
    ("full", {"n_heads": 4, "n_kv_heads": 2, "qk_norm": True}),
    ("full", {"n_heads": 4, "v_head_dim": 24}),
    ("full", {"n_heads": 4, "qkv_bias": True, "output_bias": True, "output_gate": "channel", "v_head_dim": 24}),
    ("full", {"n_heads": 4, "n_kv_heads": 2, "qk_norm": True, "qk_norm_over": "width", "output_gate": "head"}),
    ("full", {"n_heads": 4, "qk_norm": True, "qk_norm_scale": False, "output_bias": True}),
    ("chunked", {"n_heads": 4, "chunk": 50}),
    ("window", {"n_heads": 4, "sinks": True, "score_softcap": 30.0}),
    ("mla", {"n_heads": 4, "sinks": True}),
    ("mla", {"n_heads": 4, "rope_dim": 0}),
    ("mla", {"n_heads": 4, "latent_norm": False}),
    ("ansa", {"n_heads": 4, "latent_norm": False, "gate_bias": True}),
    (
        "nsa",
        {"n_heads": 4, "qk_norm": True, "qk_norm_over": "width", "separate_kv": True, "qkv_bias": True}
        | {"selection_block": 32},
    ),
    ("window", {"n_heads": 4, "window": 100}),
    ("mla", {"n_heads": 4, "q_rank": 40}),
    ("mla", {"n_heads": 4, "window": 30}),
    ("gla", {"n_heads": 8, "n_kv_heads": 4, "n_latent_heads": 2, "kv_rank": 64}),
    ("nsa", {"n_heads": 4, "n_kv_heads": 2, "qk_norm": True, "separate_kv": True}),
    ("nsa", {"n_heads": 4, "n_kv_heads": 2, "selection_block": 32, "query_group": 8}),
    ("ansa", {"n_heads": 4, "n_kv_heads": 2}),
    ("attention", {"projection": {"kind": "gla", "n_heads": 4}, "patterns": [{"kind": "compression"}]}),
    (
        "attention",
        {
            "projection": {"kind": "gqa", "n_heads": 4},
            "patterns": [{"kind": "compression"}, {"kind": "window", "window": 9}],
        },
    ),
]


@pytest.mark.parametrize(("kind", "fields"), SETTINGS)
@pytest.mark.parametrize("seq_len", [1, 37, 400])
def test_a_formula_gives_what_cost_counts(kind, fields, seq_len):
    config = config_class(kind).model_validate({"kind": kind, **fields})
    for part in config.parts or (None,):
        point, cost = config.resolve(128, seq_len, part), config.cost(128, seq_len, part)
        found = formulas.of_attention(point)
        formulas.check(found, cost, formulas.names_of(config, point, 128, seq_len), kind)
        assert formulas.counts(cost).keys() <= found.keys()


def test_a_wrong_formula_is_refused():
    config = config_class("full")(n_heads=4)
    values = formulas.names_of(config, config.resolve(128), 128, 64)
    for wrong in ({"cache.held": "seq_len"}, {"parameters.quary": "d_model"}):
        with pytest.raises(ZooError, match=r"full: formula .* gives .*; cost counts"):
            formulas.check(wrong, config.cost(128, 64), values, "full")
    with pytest.raises(ZooError, match="n_haeds"):
        formulas.evaluate("d_model*n_haeds", values)


@pytest.mark.parametrize(
    ("formula", "latex"),
    [
        ("d_model*n_heads*(head_dim + rope_dim)", r"D \, H \, (d_n + d_r)"),
        ("kv_rank/n_latent_heads", r"\frac{r}{C}"),
        ("seq_len - (window - 1)", "T - (w - 1)"),
        ("2*ceil(seq_len/compression_stride)", r"2 \, \lceil T / s \rceil"),
        ("min(seq_len, window) + width", r"\min(T, w) + \text{width}"),
        ("sum(t//selection_block + t % 4 for t in range(seq_len))", None),
    ],
)
def test_latex(formula, latex):
    latex = latex or r"\sum_{t = 0}^{T - 1} (\lfloor t / b \rfloor + (t \bmod 4))"
    assert formulas.latex(formula) == latex


def test_what_is_no_arithmetic_has_no_latex():
    with pytest.raises(ZooError, match="a formula cannot hold"):
        formulas.latex("print(1)")


def test_names_are_those_a_legend_needs():
    assert formulas.names_in(["width*d_model", "sum(t for t in range(seq_len))"]) == ["seq_len", "d_model", "width"]


def test_the_symbols_are_those_of_the_field_descriptions():
    fields = config_class("ansa").model_fields
    for name in (
        "n_heads",
        "n_kv_heads",
        "kv_rank",
        "n_latent_heads",
        "compression_block",
        "n_selected",
        "query_group",
    ):
        assert f" {formulas.SYMBOLS[name]}" in fields[name].description
