"""Small blocks that every test of the room uses; sizes are chosen so that 40 tokens reach every branch."""

import zlib

import pytest
import torch

from zoo.blocks import build, config_class
from zoo.blocks.registry import PATTERNS as PATTERN_FAMILY
from zoo.blocks.registry import POSITIONS as POSITION_FAMILY

D_MODEL = 24
GROUPED = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "v_head_dim": 5}
LATENT = {"n_heads": 4, "head_dim": 6, "rope_dim": 4, "v_head_dim": 5, "kv_rank": 8}
COARSE = {"compression_block": 4, "compression_stride": 2, "selection_block": 8, "n_selected": 3, "n_local": 1}
FINE = {"compression_block": 4, "compression_stride": 4, "selection_block": 4, "n_selected": 4, "query_group": 2}
PATTERNS = [
    {"kind": "selection", "selection_block": 4, "n_selected": 3, "n_local": 1},
    {"kind": "compression", "compression_block": 4, "compression_stride": 2},
    {"kind": "full"},
    {"kind": "window", "window": 5},
]

# name: (config, part). Every kind, every part, every choice that changes the computation.
CASES = {
    "full": ({"kind": "full", **GROUPED}, None),
    "full-norm": ({"kind": "full", **GROUPED, "n_kv_heads": 1, "qk_norm": True}, None),
    "window": ({"kind": "window", **GROUPED, "window": 5}, None),
    "mla": ({"kind": "mla", **LATENT, "q_rank": 7}, None),
    "mla-window": ({"kind": "mla", **LATENT, "window": 5}, None),
    "gla": ({"kind": "gla", **LATENT, "n_kv_heads": 2, "n_latent_heads": 2}, None),
    "full-partial": (
        {"kind": "full", **GROUPED, "head_dim": 8, "rope_fraction": 0.5, "qk_norm": True, "qk_norm_over": "width"}
        | {"qkv_bias": True, "output_bias": True, "output_gate": "head", "score_scale": 0.5},
        None,
    ),
    "window-normed-after": (
        {"kind": "window", **GROUPED, "window": 5, "qk_norm": True, "qk_norm_place": "after", "qk_norm_scale": False}
        | {"output_gate": "channel"},
        None,
    ),
    "mla-no-rope": (
        {"kind": "mla", **LATENT, "rope_dim": 0, "output_bias": True, "output_gate": "channel", "score_scale": 0.3},
        None,
    ),
    "full-sinks": ({"kind": "full", **GROUPED, "sinks": True, "score_softcap": 0.4}, None),
    "window-sinks": ({"kind": "window", **GROUPED, "window": 5, "sinks": True}, None),
    "chunked": ({"kind": "chunked", **GROUPED, "chunk": 7, "sinks": True}, None),
    "full-tempered": (
        {"kind": "full", **GROUPED, "rope": False, "position_temperature": {"every": 5, "scale": 0.8}},
        None,
    ),
    "mla-tempered": ({"kind": "mla", **LATENT, "position_temperature": {"every": 3, "scale": 0.8}}, None),
    "mla-capped": ({"kind": "mla", **LATENT, "window": 5, "score_softcap": 0.5, "sinks": True}, None),
    "gla-capped": ({"kind": "gla", **LATENT, "n_kv_heads": 2, "n_latent_heads": 2, "score_softcap": 0.5}, None),
    "reaching-sinks": (
        {"kind": "attention", "projection": {"kind": "gqa", **GROUPED, "sinks": True, "score_softcap": 2.0}}
        | {"patterns": [{"kind": "window", "window": 5}, {"kind": "dilated", "n_keys": 4, "dilation": 3}]},
        None,
    ),
    "mla-scaled": ({"kind": "mla", **LATENT, "q_rank": 7, "latent_scale": 1.7, "q_latent_scale": 0.6}, None),
    "mla-plain-latent": ({"kind": "mla", **LATENT, "latent_norm": False}, None),
    "mla-unrotated": ({"kind": "mla", **LATENT, "rope": False, "window": 5}, None),
    "nsa": ({"kind": "nsa", **GROUPED, **COARSE, "window": 5}, None),
    "nsa-no-rope": (
        {"kind": "nsa", **GROUPED, **COARSE, "window": 5, "separate_kv": True, "rope": False, "pool_rotated": False}
        | {
            "gate_bias": True,
            "qkv_bias": True,
            "qk_norm": True,
            "qk_norm_over": "width",
            "output_gate": "head",
            "score_scale": 0.5,
        },
        None,
    ),
    "nsa-normed-after": (
        {"kind": "nsa", **GROUPED, **COARSE, "window": 5, "pool_rotated": False, "qk_norm": True}
        | {"qk_norm_place": "after", "head_dim": 8, "rope_fraction": 0.25},
        None,
    ),
    "nsa-separate": ({"kind": "nsa", **GROUPED, **COARSE, "window": 5, "separate_kv": True, "qk_norm": True}, None),
    "nsa-mlp": ({"kind": "nsa", **GROUPED, **COARSE, "window": 5, "pooling": "mlp"}, None),
    "nsa-unrotated": ({"kind": "nsa", **GROUPED, **COARSE, "window": 5, "pool_rotated": False}, None),
    "ansa-local": ({"kind": "ansa", **LATENT, **FINE, "n_kv_heads": 2, "window": 5}, "local"),
    "ansa-global": ({"kind": "ansa", **LATENT, **FINE, "n_kv_heads": 2, "window": 5}, "global"),
    "ansa-mlp": (
        {"kind": "ansa", **LATENT, **FINE, "n_kv_heads": 2, "n_latent_heads": 2, "pooling": "mlp"}
        | {"gate_bias": True, "latent_norm": False},
        "global",
    ),
    "ansa-unrotated": ({"kind": "ansa", **LATENT, **FINE, "n_kv_heads": 2, "pool_rotated": False}, "global"),
    "all": ({"kind": "attention", "projection": {"kind": "mla", **LATENT}, "patterns": PATTERNS}, None),
    "compression": (
        {"kind": "attention", "projection": {"kind": "gqa", **GROUPED}, "patterns": PATTERNS[1:2]},
        None,
    ),
}

# Every other pattern of the registry, by the example of its config, alone and beside a window that shares latents.
for kind, pattern in PATTERN_FAMILY.classes():
    if kind not in {each["kind"] for each in PATTERNS}:
        fields = {"kind": kind, **pattern.about.example}
        grouped, latent = {"kind": "gqa", **GROUPED}, {"kind": "mla", **LATENT}
        CASES[kind] = ({"kind": "attention", "projection": grouped, "patterns": [fields]}, None)
        both = [fields, {"kind": "window", "window": 5}]
        CASES[f"{kind}-latent"] = ({"kind": "attention", "projection": latent, "patterns": both}, None)
for kind, embedding in POSITION_FAMILY.classes():
    if kind not in ("rotary", "none"):  # which the cases above have, as `rope: true` and `rope: false`
        fields = {
            "kind": "nsa",
            **GROUPED,
            **COARSE,
            "window": 5,
            "position": {"kind": kind, **embedding.about.example},
        }
        CASES[f"nsa-{kind}"] = (fields, None)

DELTA = {"n_heads": 4, "head_dim": 6, "v_head_dim": 5}
# Mixers that are no point of the grid: those with a state.
LINEAR = {
    "gated-linear": ({"kind": "gated_linear", **DELTA, "decay_rank": 3, "decay_temperature": 2.0}, None),
    "gated-linear-mixed": ({"kind": "gated_linear", **DELTA, "conv_size": 3}, None),
    "lightning": ({"kind": "lightning", **DELTA}, None),
    "lightning-mixed": ({"kind": "lightning", **DELTA, "conv_size": 3, "decay_by_depth": False}, None),
    "gated-deltanet": ({"kind": "gated_deltanet", **DELTA, "n_key_heads": 2, "negative_eigenvalues": True}, None),
    "gated-deltanet-unmixed": ({"kind": "gated_deltanet", **DELTA, "conv_size": 0}, None),
    "kda": ({"kind": "kda", **DELTA, "decay_rank": 3, "gate_rank": 2}, None),
    "mamba2": ({"kind": "mamba2", "n_heads": 4, "n_groups": 2, "state_dim": 6, "v_head_dim": 5}, None),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A second thread costs more than it saves at these sizes."""
    torch.set_num_threads(1)


@pytest.fixture
def make():
    """make(fields, part) -> the block in float64, every parameter drawn at random, norms' scales and offsets too."""

    def make(fields: dict, part: str | None = None, d_model: int = D_MODEL, seed: int = 0, dtype=torch.float64):
        block = build(config_class(fields["kind"]).model_validate(fields), d_model, part).to(dtype)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in block.named_parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
            noise = torch.randn(parameter.shape, generator=generator, dtype=dtype) * scale
            parameter.data.copy_(noise + 1 if "norm" in name else noise)
        return block

    return make


@pytest.fixture(params=[*CASES, *LINEAR])
def case(request):
    """(fields, part) of each small block in turn."""
    return {**CASES, **LINEAR}[request.param]


@pytest.fixture(params=LINEAR)
def linear_case(request):
    """(fields, part) of each small block with a state."""
    return LINEAR[request.param]


@pytest.fixture(params=CASES)
def grid_case(request):
    """(fields, part) of each small block that is made of a projection and patterns."""
    return CASES[request.param]


@pytest.fixture
def noise():
    """noise(*shape, seed=0) -> independent normal numbers in float64."""

    def noise(*shape: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return noise


LONG_VARIANTS = ("nsa-separate", "nsa-mlp", "nsa-normed-after", "nsa-no-rope", "nsa-unrotated")
LONG_TESTS = ("test_every_block_equals_the_loops", "test_a_prompt_may_end_anywhere")
ALWAYS = (
    *("full", "full-sinks", "window", "chunked", "mla", "mla-capped", "gla", "nsa", "ansa-local", "ansa-global", "all"),
    *("dilated", "moba", "gated-linear", "lightning", "gated-deltanet", "kda", "mamba2"),
)
SHARE = 3


def pytest_collection_modifyitems(items):
    """Leave to -m long: loops in Python over variants of NSA, and of each other variant two thirds of the tests.

    Which third stays differs from variant to variant, so that each test runs with several of them.
    """
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        name, test = params.get("case", params.get("grid_case", params.get("linear_case"))), item.originalname
        if not isinstance(name, str) or name not in (*CASES, *LINEAR) or name in ALWAYS:
            continue
        stays = zlib.crc32(f"{test} {name}".encode()) % SHARE == 0
        if not stays or (test in LONG_TESTS and name in LONG_VARIANTS):
            item.add_marker("long")
