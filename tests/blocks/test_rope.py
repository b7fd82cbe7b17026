"""Rotary tables against transformers, and what rotation promises."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from zoo.blocks import config_class
from zoo.blocks.base import Context
from zoo.blocks.fields import PositionTemperature, RopeFields
from zoo.blocks.positions.rotary import inverse_frequencies
from zoo.blocks.positions.rotary_config import LinearScaling, Llama3Scaling, YarnScaling

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192} | {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
SCALINGS = [
    None,
    {"rope_type": "linear", "factor": 8.0},
    YARN,
    YARN | {"attention_factor": 1.5},
    YARN | {"mscale": 0.7, "mscale_all_dim": 1.2, "factor": 40.0},
    YARN | {"mscale": 0.7, "factor": 40.0},
    YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    YARN | {"original_max_position_embeddings": 16, "factor": 1.0},
    LLAMA3,
    LLAMA3 | {"factor": 32.0, "low_freq_factor": 0.5, "high_freq_factor": 8.0},
]


def rope_fields(theta: float, scaling: dict | None) -> RopeFields:
    return RopeFields.model_validate({"rope_theta": theta, "rope_scaling": scaling})


def theirs(dim: int, theta: float, scaling: dict | None) -> LlamaConfig:
    longest = int(scaling["factor"] * scaling.get("original_max_position_embeddings", 2048)) if scaling else 2048
    scaling = dict(scaling) if scaling else None
    return LlamaConfig(head_dim=dim, rope_theta=theta, rope_scaling=scaling, max_position_embeddings=longest)


@pytest.mark.parametrize("dim", [2, 32, 64, 128])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_are_those_of_transformers(dim, theta, scaling):
    kind = scaling["rope_type"] if scaling else "default"
    expected, factor = ROPE_INIT_FUNCTIONS[kind](theirs(dim, theta, scaling), "cpu")
    ours = rope_fields(theta, scaling).rope_scaling
    assert torch.equal(inverse_frequencies(dim, theta, ours), expected)
    assert (ours.attention_factor_value if ours else 1.0) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotation_is_that_of_llama(scaling, noise):
    config = theirs(64, 10_000.0, scaling)
    q_BHTD, k_BHTD = noise(1, 3, 700, 64).float(), noise(1, 2, 700, 64, seed=1).float()
    cos, sin = LlamaRotaryEmbedding(config)(q_BHTD, torch.arange(700)[None])
    expected = apply_rotary_pos_emb(q_BHTD, k_BHTD, cos, sin)
    table = Context.for_tokens(1, 700).rope(64, rope_fields(10_000.0, scaling).embedding.build(), torch.float32)
    for x, y in zip((q_BHTD, k_BHTD), expected, strict=True):
        torch.testing.assert_close(table.rotate(x.transpose(1, 2)), y.transpose(1, 2), rtol=0, atol=2e-6)


def test_scores_depend_on_distance_alone(noise):
    q, k = noise(8), noise(8, seed=1)
    table = Context.for_tokens(1, 50).rope(8, RopeFields().embedding.build(), torch.float64)
    scores = table.rotate(q.expand(1, 50, 8))[0] @ table.rotate(k.expand(1, 50, 8))[0].T
    for distance in (0, 1, 7):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores[0, 0] == pytest.approx(q.dot(k).item())


def test_a_block_stands_at_the_mean_position_of_its_tokens(noise):
    """Pooled keys rotated there are the plain keys at l = s = 1, and equal keys keep their direction when pooled."""
    context, fields = Context.for_tokens(1, 12), RopeFields().embedding.build()
    tokens = context.rope(2, fields, torch.float64)
    blocks = context.rope(2, fields, torch.float64, blocks=(4, 4))
    mean = tokens.rotate(noise(2).expand(1, 12, 2)).view(1, 3, 4, 2).mean(2)
    at_centre = blocks.rotate(noise(2).expand(1, 3, 2))
    torch.testing.assert_close(mean / mean.norm(dim=-1, keepdim=True), at_centre / at_centre.norm(dim=-1, keepdim=True))
    single = context.rope(2, fields, torch.float64, blocks=(1, 1))
    assert torch.equal(single.cos_BTR, tokens.cos_BTR)


def test_tables_are_float32_under_autocast_and_float64_in_float64():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context = Context.for_tokens(1, 4)
        assert context.rope(8, RopeFields().embedding.build(), torch.bfloat16).cos_BTR.dtype == torch.float32
    assert context.rope(8, RopeFields().embedding.build(), torch.float64).cos_BTR.dtype == torch.float64


def test_yarn_scales_the_scores_of_latent_projections(make, noise):
    """DeepSeek: with mscale = mscale_all_dim cos and sin stay, and the softmax scale grows by mscale^2."""
    scaling = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "factor": 40.0}
    assert YarnScaling(**scaling).attention_factor_value == 1.0
    assert YarnScaling(**scaling).score_factor == pytest.approx((0.1 * torch.tensor(40.0).log().item() + 1) ** 2)
    assert LinearScaling(rope_type="linear", factor=2.0).score_factor == 1.0
    block = make({"kind": "mla", "n_heads": 4, "rope_scaling": scaling})
    queries, _ = block.projection(noise(1, 3, 24), Context.for_tokens(1, 3))
    width = config_class("mla")(n_heads=4).resolve(24).projection.qk_dim
    assert queries.scale == pytest.approx(width**-0.5 * YarnScaling(**scaling).score_factor)


@pytest.mark.parametrize("scaling", [LinearScaling, YarnScaling, Llama3Scaling, PositionTemperature])
def test_a_table_is_known_by_every_field_of_its_scaling(scaling):
    fields = {"rope_type": "x", "factor": 2.0, "original_max_position_embeddings": 7, "every": 5, "scale": 0.5}
    made = scaling.model_construct(**{n: fields.get(n, f"value of {n}") for n in scaling.model_fields})
    assert sorted(map(str, made.values)) == sorted(str(getattr(made, name)) for name in scaling.model_fields)
