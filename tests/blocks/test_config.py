"""What a recipe may say of a block: defaults, refusals with the key they belong to, fields that all count."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from zoo.blocks import block_kinds, build, config_class
from zoo.blocks.base import Attention, Context
from zoo.blocks.config import AttentionConfig

GQA, MLA, GLA = ({"kind": kind} for kind in ("gqa", "mla", "gla"))
FULL, COMPRESSION, SELECTION, WINDOW = ({"kind": kind} for kind in ("full", "compression", "selection", "window"))
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}

# kind, fields, where the error must point, what it must say
REFUSED = [
    ("full", {"n_heads": 0}, ("n_heads",), "greater than or equal to 1"),
    ("full", {"n_heads": True}, ("n_heads",), "valid integer"),
    ("full", {"n_heads": "16"}, ("n_heads",), "valid integer"),
    ("full", {"heads": 16}, ("heads",), "not permitted"),
    ("full", {"n_kv_heads": 5}, ("n_kv_heads",), r"must divide n_heads \(16\); found 5"),
    ("full", {"head_dim": 33}, ("head_dim",), "must be even.*found 33"),
    ("full", {"rope_theta": float("inf")}, ("rope_theta",), "finite"),
    ("full", {"rope_scaling": {"rope_type": "ntk"}}, ("rope_scaling",), "'linear', 'yarn', 'llama3'"),
    ("full", {"rope_scaling": YARN | {"beta_fast": 1.0}}, ("rope_scaling", "beta_fast"), r"above beta_slow \(1\)"),
    ("full", {"rope": False, "rope_scaling": YARN}, ("rope_scaling",), "needs rope: true; found yarn without rotation"),
    ("full", {"rope": False, "rope_fraction": 0.5}, ("rope_fraction",), "needs rope: true; found 0.5"),
    ("full", {"head_dim": 6, "rope_fraction": 0.5}, ("rope_fraction",), "even number of the head's 6 channels.*3 chan"),
    ("full", {"head_dim": 64, "rope_fraction": 0.3}, ("rope_fraction",), "even number.*found 0.3, 19.2 channels"),
    ("full", {"qk_norm_over": "width"}, ("qk_norm_over",), "needs qk_norm: true; found 'width' without it"),
    ("full", {"qk_norm": True, "rope": False, "qk_norm_place": "after"}, ("qk_norm_place",), "needs rope: true"),
    ("full", {"output_gate": "heads"}, ("output_gate",), "'head' or 'channel'"),
    ("full", {"score_scale": 0.0}, ("score_scale",), "greater than 0"),
    (
        "nsa",
        {"qk_norm": True, "qk_norm_place": "after", "separate_kv": True},
        ("qk_norm_place",),
        "needs separate_kv: false",
    ),
    ("mla", {"rope_dim": 7}, ("rope_dim",), "must be even.*found 7"),
    ("mla", {"qk_norm": True}, ("qk_norm",), "not permitted"),
    ("gla", {"n_latent_heads": 3}, ("n_latent_heads",), r"must divide the key/value heads \(16\).*found 3"),
    ("gla", {"n_kv_heads": 2, "n_latent_heads": 4}, ("n_latent_heads",), r"must divide the key/value heads \(2\)"),
    ("gla", {"kv_rank": 33}, ("kv_rank",), r"multiple of n_latent_heads \(2\).*found 33"),
    ("nsa", {"compression_stride": 12}, ("compression_stride",), r"must divide compression_block \(32\); found 12"),
    ("nsa", {"selection_block": 24}, ("selection_block",), r"multiple of compression_stride \(16\); found 24"),
    ("nsa", {"n_selected": 2}, ("n_selected",), r"at least n_init \+ n_local \(3\).*found 2"),
    ("nsa", {"query_group": 3}, ("query_group",), r"must divide selection_block \(64\).*found 3"),
    ("nsa", {"n_local": 0}, ("n_local",), "greater than or equal to 1"),
    ("ansa", {"compression_stride": 32}, ("compression_stride",), r"must divide compression_block \(16\)"),
    ("ansa", {"kv_rank": 223, "n_latent_heads": 2}, ("kv_rank",), "multiple of n_latent_heads"),
    ("ansa", {"first": "globl"}, ("first",), "'local' or 'global'"),
    ("attention", {"patterns": []}, ("patterns",), "at least 1"),
    ("attention", {"patterns": [FULL, FULL]}, ("patterns", 1), "a second 'full'"),
    ("attention", {"patterns": [WINDOW, {**WINDOW, "window": 3}]}, ("patterns", 1), "a second 'window'"),
    ("attention", {"patterns": [SELECTION]}, ("patterns", 0), "needs the pattern compression in the same block"),
    (
        "attention",
        {"patterns": [{**SELECTION, "selection_block": 40}, COMPRESSION]},
        ("patterns", 0, "selection_block"),
        r"multiple of compression_stride \(16\); found 40",
    ),
    ("attention", {"projection": {**GLA, "n_kv_heads": 3}}, ("projection", "n_kv_heads"), r"n_heads \(16\); found 3"),
    (
        "attention",
        {"projection": MLA, "patterns": [WINDOW, FULL], "separate_kv": True},
        ("separate_kv",),
        "needs .* gqa",
    ),
    ("chunked", {"chunk": 0}, ("chunk",), "greater than or equal to 1"),
    ("nsa", {"position_temperature": {"every": 0}}, ("position_temperature", "every"), "greater than or equal to 1"),
    ("mla", {"position_temperature": {"scale": 0.0}}, ("position_temperature", "scale"), "greater than 0"),
    ("full", {"position_temperature": 0.1}, ("position_temperature",), "valid dictionary"),
    ("full", {"sinks": 1}, ("sinks",), "valid boolean"),
    ("full", {"score_softcap": 0.0}, ("score_softcap",), "greater than 0"),
    ("mla", {"score_softcap": 1e7}, ("score_softcap",), "less than or equal to 1000000"),
    ("nsa", {"sinks": True}, ("sinks",), "not permitted"),
    (
        "attention",
        {"projection": {**MLA, "sinks": True}, "patterns": [WINDOW, COMPRESSION]},
        ("projection", "sinks"),
        "cannot be with the pattern compression; found true",
    ),
    (
        "attention",
        {"projection": {**GLA, "score_softcap": 5.0}, "patterns": [SELECTION, COMPRESSION]},
        ("projection", "score_softcap"),
        "cannot be with the pattern selection and compression; found 5.0",
    ),
    ("attention", {"separate_kv": True}, ("separate_kv",), "needs two patterns or more"),
    ("attention", {"projection": {"kind": "mha"}}, ("projection",), "'gqa', 'mla', 'gla'"),
]


@pytest.mark.parametrize(("kind", "fields", "path", "why"), REFUSED)
def test_refused_with_the_reason(kind, fields, path, why):
    with pytest.raises(ValidationError, match=why) as caught:
        config_class(kind).model_validate(fields)
    tags = {"gqa", "mla", "gla", "yarn", "selection"}  # of pydantic's unions, which are no keys
    found = [tuple(key for key in error["loc"] if key not in tags) for error in caught.value.errors()]
    assert path in found


def test_all_problems_come_at_once():
    with pytest.raises(ValidationError) as caught:
        config_class("ansa")(n_kv_heads=5, n_selected=2, query_group=5)
    assert {error["loc"] for error in caught.value.errors()} == {("n_kv_heads",), ("n_selected",), ("query_group",)}


def test_problems_that_need_d_model():
    full = config_class("full")()
    assert full.problems() == []
    assert full.problems(1000) == [(("n_heads",), "must divide d_model (1000) where head_dim is not given; found 16")]
    with pytest.raises(ValueError, match=r"FullConfig: n_heads must divide d_model \(1000\)"):
        build(full, 1000)
    assert config_class("full")(n_heads=8).problems(72)[0] == (
        ("head_dim",),
        "must be even, for rotation works on pairs of channels; found 9",
    )
    tiny = config_class("ansa")(n_kv_heads=1, rope_dim=32, n_heads=16)
    assert tiny.problems(256) == [
        (("kv_rank",), "n_kv_heads head_dim - rope_dim leaves no width for the latent: give kv_rank")
    ]
    nested = config_class("attention")(projection={"kind": "mla"})
    assert nested.problems(1000)[0][0] == ("projection", "n_heads")


def test_scales_of_latents_need_a_norm_before_them():
    for kind in ("mla", "gla", "ansa"):
        for fields, message in (
            ({"latent_scale": 2.0, "latent_norm": False}, "needs latent_norm: true; found 2 without the norm"),
            ({"q_latent_scale": 2.0}, "needs q_rank; found 2 without a query latent"),
            ({"latent_scale": 0.0}, "greater than 0"),
        ):
            with pytest.raises(ValidationError, match=message):
                config_class(kind)(**fields)


def test_parts_are_checked():
    ansa = config_class("ansa")()
    with pytest.raises(ValueError, match="part must be one of local, global; found 'globl'"):
        ansa.cost(1024, 10, "globl")
    with pytest.raises(ValueError, match="part must be one of local, global; found None"):
        build(ansa, 1024)
    with pytest.raises(ValueError, match="part must be none, the block has a single part; found 'local'"):
        build(config_class("full")(), 1024, "local")


def test_ansa_alternates_local_first_unless_told():
    assert config_class("ansa")().alternation == ("local", "global")
    assert config_class("ansa")(first="global").alternation == ("global", "local")
    assert config_class("ansa").parts == ("local", "global")


def test_ansa_defaults_are_the_recipe_and_half_the_cache_of_nsa():
    spelt = {"kind": "ansa", "n_heads": 16, "n_kv_heads": 4, "kv_rank": 224, "rope_dim": 32, "window": 512}
    written = config_class("ansa").model_validate(spelt | {"n_selected": 64, "query_group": 4})
    for part in ("local", "global"):
        assert written.grid_point(1024, part) == config_class("ansa")().grid_point(1024, part)
        half = 2 * written.cost(1024, 4096, part).cache_nominal_elements
        assert half == config_class("nsa")().cost(1024, 4096).cache_nominal_elements
    assert config_class("nsa")().n_selected * config_class("nsa")().selection_block == 64 * 16
    local = written.grid_point(1024, "local")
    assert local.projection.kind == "mla"
    assert [pattern.kind for pattern in local.patterns] == ["window"]


def test_every_field_is_described():
    for kind, cls in block_kinds():
        for name, field in cls.model_fields.items():
            assert field.description, f"{kind}.{name}"
            assert not field.is_required(), f"{kind}.{name}"
        for name, part in cls.model_json_schema().get("$defs", {}).items():
            assert all(field.get("description") for field in part["properties"].values()), f"{kind}: {name}"


# A value unlike the default for every field of every kind, by field; the sizes below are reached by 64 tokens.
SMALL = {
    "full": {"n_heads": 4, "n_kv_heads": 2},
    "window": {"n_heads": 4, "n_kv_heads": 2, "window": 8},
    "chunked": {"n_heads": 4, "n_kv_heads": 2, "chunk": 8},
    "mla": {"n_heads": 4},
    "gla": {"n_heads": 4},
    "nsa": {"n_heads": 4, "n_kv_heads": 2, "compression_block": 8, "compression_stride": 4, "selection_block": 8}
    | {"n_selected": 4, "window": 8},
    "ansa": {"n_heads": 4, "n_kv_heads": 2, "rope_dim": 4, "n_selected": 4, "compression_block": 8, "window": 8}
    | {"compression_stride": 4, "selection_block": 8},
    "attention": {"projection": {**GQA, "n_heads": 4}},
    "gated_linear": {"n_heads": 4},
    "lightning": {"n_heads": 4},
    "gated_deltanet": {"n_heads": 4},
    "kda": {"n_heads": 4},
    "mamba2": {"n_heads": 4, "v_head_dim": 16, "state_dim": 8},
}
CHANGED = {
    "n_heads": 8,
    "n_kv_heads": 1,
    "head_dim": 6,
    "v_head_dim": 6,
    "qk_norm": True,
    "qk_norm_over": "width",
    "qk_norm_place": "after",
    "qk_norm_scale": False,
    "rope": False,
    "rope_fraction": 0.5,
    "qkv_bias": True,
    "output_bias": True,
    "gate_bias": True,
    "latent_norm": False,
    "latent_scale": 1.5,
    "q_latent_scale": 1.5,
    "output_gate": "channel",
    "score_scale": 0.7,
    "sinks": True,
    "score_softcap": 0.3,
    "norm_eps": 1e-2,
    "rope_theta": 100.0,
    "rope_scaling": YARN,
    "position": {"kind": "rotary", "theta": 100.0},
    "position_temperature": {"every": 3, "scale": 0.5},
    "rope_dim": 2,
    "kv_rank": 20,
    "q_rank": 12,
    "n_latent_heads": 1,
    "window": 5,
    "chunk": 5,
    "compression_block": 12,
    "compression_stride": 2,
    "pooling": "mlp",
    "pool_rotated": False,
    "selection_block": 16,
    "n_selected": 5,
    "n_init": 0,
    "n_local": 3,
    "query_group": 1,
    "separate_kv": True,
    "projection": {**MLA, "n_heads": 4},
    "patterns": [WINDOW],
    "conv_size": 3,
    "decay_rank": 5,
    "gate_rank": 5,
    "decay_temperature": 3.0,
    "decay_by_depth": False,
    "n_key_heads": 2,
    "negative_eigenvalues": True,
    "state_dim": 6,
    "n_groups": 2,
}
SPECIAL = {
    **{
        (kind, name): {"qk_norm": True}
        for kind in ("full", "window", "chunked", "nsa")
        for name in ("qk_norm_over", "qk_norm_place", "qk_norm_scale")
    },
    ("full", "norm_eps"): {"qk_norm": True},
    ("window", "norm_eps"): {"qk_norm": True},
    ("chunked", "norm_eps"): {"qk_norm": True},
    ("nsa", "norm_eps"): {"qk_norm": True},
    **{(kind, "q_latent_scale"): {"q_rank": 12} for kind in ("mla", "gla", "ansa")},
    ("gla", "n_kv_heads"): {"n_kv_heads": 2},
    ("ansa", "n_latent_heads"): {"n_latent_heads": 2},
    ("nsa", "query_group"): {"query_group": 4},
    ("attention", "patterns"): {"patterns": [{**WINDOW, "window": 8}]},
    ("attention", "separate_kv"): {"patterns": [WINDOW, FULL]},
    ("attention", "gate_bias"): {"patterns": [WINDOW, FULL]},
}


def signature(config, part, state):
    """The shapes of the parameters, and what the block computes when its weights are drawn from one seed."""
    block = build(config, 32, part).double()
    for name, parameter in block.named_parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(state), dtype=torch.float64)
        parameter.data.copy_(noise / 4 + ("norm" in name))
    x = torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {name: p.shape for name, p in block.named_parameters()}, block(x, Context.for_tokens(1, 64))


@pytest.mark.parametrize("kind", SMALL)
def test_every_field_reaches_the_module(kind):
    cls = config_class(kind)
    for name in cls.model_fields:
        if name in ("kind", "first", "share_kv"):  # share_kv: tests/zoo/test_share_kv.py
            continue
        extra = SPECIAL.get((kind, name), {})
        base = cls.model_validate(SMALL[kind] | {k: v for k, v in extra.items() if k != name})
        changed = cls.model_validate(dict(base) | {name: extra.get(name, CHANGED[name])})
        assert changed != base, f"{kind}.{name} is changed to its default"
        differs = []
        for part in cls.parts or (None,):
            (shapes, y), (new_shapes, new_y) = signature(base, part, 1), signature(changed, part, 1)
            differs.append(shapes != new_shapes or (y - new_y).abs().max() > 1e-9)
        assert any(differs), f"{kind}.{name} changes nothing"


whole = st.integers(1, 12)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from([kind for kind in SMALL if kind not in ("window", "attention")]),
    sizes=st.fixed_dictionaries({}, optional={name: whole for name in CHANGED if isinstance(CHANGED[name], int)}),
    d_model=st.integers(1, 96),
)
def test_what_has_no_problems_can_be_built(kind, sizes, d_model):
    cls = config_class(kind)
    fields = {name: size for name, size in sizes.items() if name in cls.model_fields and CHANGED[name] is not True}
    try:
        config = cls.model_validate(fields)
    except ValidationError:
        return
    for part in cls.parts or (None,):
        if config.problems(d_model):
            with pytest.raises(ValueError, match=cls.__name__):
                config.resolve(d_model, part=part)
            continue
        with torch.device("meta"):
            module = build(config, d_model, part)
        assert config.cost(d_model, 9, part).total_parameters == sum(p.numel() for p in module.parameters())


class Wider(AttentionConfig):
    """A kind that subclasses the generic one and builds a module of its own."""

    def build(self, d_model, part=None):
        module = Attention(self, d_model)
        module.extra = torch.nn.Parameter(torch.zeros(7))
        return module


class Counted(Wider):
    def cost(self, d_model, seq_len, part=None):
        point = self.point(d_model, seq_len).cost(seq_len)
        return replace(point, parameters={**point.parameters, "extra": 7})


def test_what_a_kind_that_subclasses_attention_builds_and_counts_is_what_the_model_has():
    fields = {"projection": {"kind": "gqa", "n_heads": 2}, "patterns": [{"kind": "full"}]}
    plain, wider, counted = (kind(**fields).resolve(64, 128) for kind in (AttentionConfig, Wider, Counted))
    numbers = [sum(p.numel() for p in mixer.build().parameters()) for mixer in (plain, wider, counted)]
    assert numbers == [numbers[0], numbers[0] + 7, numbers[0] + 7]
    assert [mixer.cost(128).total_parameters for mixer in (plain, wider, counted)] == [numbers[0], *numbers[::2]]
