"""`mla` against transformers' DeepSeek-V3 attention with the same weights."""

import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3Config,
    DeepseekV3RotaryEmbedding,
)

from zoo.blocks.base import Context

HEADS, CONTENT, ROPE, VALUE, RANK = 4, 16, 8, 12, 24
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
YARN |= {"mscale": 0.8, "mscale_all_dim": 1.2}


def copy_weights(block, theirs, interleaved: bool):
    """Rows of rotary channels go from pairs (2i, 2i + 1) to half split where theirs are interleaved."""
    order = torch.arange(ROPE).view(-1, 2).T.flatten() if interleaved else torch.arange(ROPE)
    ours, data = block.projection, {name: p.data for name, p in theirs.named_parameters()}
    query = data["q_proj.weight"] if "q_proj.weight" in data else data["q_b_proj.weight"]
    content, rope = query.unflatten(0, (HEADS, -1)).split([CONTENT, ROPE], dim=1)
    query = torch.cat((content, rope[:, order]), 1).flatten(0, 1)
    if "q_a_proj.weight" in data:
        ours.query.weight.data.copy_(query)
        ours.query_norm.weight.data.copy_(data["q_a_layernorm.weight"])
        query = data["q_a_proj.weight"]
    latent, rope = data["kv_a_proj_with_mqa.weight"].split([RANK, ROPE])
    ours.input.weight.data.copy_(torch.cat((query, latent, rope[order])))
    ours.latent_norm.weight.data.copy_(data["kv_a_layernorm.weight"])
    key, value = data["kv_b_proj.weight"].unflatten(0, (HEADS, -1)).split([CONTENT, VALUE], dim=1)
    ours.key_up.weight.data.copy_(key.flatten(0, 1))
    ours.value_up.weight.data.copy_(value.flatten(0, 1))
    block.output.weight.data.copy_(data["o_proj.weight"])


@pytest.mark.parametrize("q_rank", [None, 20])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("scaling", [None, YARN])
def test_equals_deepseek_v3(q_rank, interleaved, scaling, make, noise):
    sizes = {"qk_nope_head_dim": CONTENT, "qk_rope_head_dim": ROPE, "v_head_dim": VALUE, "kv_lora_rank": RANK}
    config = DeepseekV3Config(
        **sizes,
        hidden_size=64,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        q_lora_rank=q_rank,
        rope_interleave=interleaved,
        rope_scaling=dict(scaling) if scaling else None,
        max_position_embeddings=128,
        attn_implementation="eager",
    )
    theirs = DeepseekV3Attention(config, layer_idx=0)
    for index, parameter in enumerate(theirs.parameters()):
        parameter.data.copy_(noise(*parameter.shape, seed=index) / (8 if parameter.dim() > 1 else 1))
    fields = {"n_heads": HEADS, "head_dim": CONTENT, "rope_dim": ROPE, "v_head_dim": VALUE, "kv_rank": RANK}
    fields |= {"q_rank": q_rank, "rope_scaling": scaling}
    block = make({"kind": "mla", **fields}, d_model=64, dtype=torch.float32)
    copy_weights(block, theirs, interleaved)
    x_BTC = noise(2, 70, 64).float()
    mask = torch.full((70, 70), float("-inf")).triu(1)[None, None]
    position_embeddings = DeepseekV3RotaryEmbedding(config)(x_BTC, torch.arange(70)[None])
    expected = theirs(x_BTC, position_embeddings=position_embeddings, attention_mask=mask)[0]
    torch.testing.assert_close(block(x_BTC, Context.for_tokens(2, 70)), expected, rtol=0, atol=1e-5)


def test_absorbed_attention_over_the_cached_entries_is_the_same(make, noise):
    """o = W_UV sum p c with scores (W_UK^T q) . c + q_R . k_R needs nothing but what `entries` says is cached."""
    block = make({"kind": "mla", "n_heads": 4, "head_dim": 6, "rope_dim": 4, "kv_rank": 8})
    x_BTC, context = noise(1, 9, 24), Context.for_tokens(1, 9)
    projection = block.projection
    queries, (raw,) = projection(x_BTC, context)
    cached = projection.rotate(raw, context)
    assert {name: tuple(x.shape[2:]) for name, x in cached.items()} == block.config.projection.entries()
    latent_TR = cached["latent"][0, :, 0]
    key_up, value_up = (up.weight.unflatten(0, (4, -1)) for up in (projection.key_up, projection.value_up))
    absorbed_THR = torch.einsum("thd,hdr->thr", queries.q[0], key_up)
    scores_HTS = torch.einsum("thr,sr->hts", absorbed_THR, latent_TR)
    scores_HTS += torch.einsum("thr,sr->hts", queries.rope[0], cached["rope_key"][0])
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    weights_HTS = (scores_HTS * queries.scale).masked_fill(~mask, float("-inf")).softmax(-1)
    o_THV = torch.einsum("hts,sr,hvr->thv", weights_HTS, latent_TR, value_up)
    torch.testing.assert_close(block(x_BTC, context)[0], block.output(o_THV.flatten(1)))
