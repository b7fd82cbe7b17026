"""`full` against transformers' Llama attention with the same weights."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3Config

from zoo.blocks.base import Context

SIZES = {"hidden_size": 64, "num_attention_heads": 8, "max_position_embeddings": 128, "attn_implementation": "eager"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def copy_weights(block, theirs):
    block.projection.input.weight.data.copy_(
        torch.cat([part.weight.data for part in (theirs.q_proj, theirs.k_proj, theirs.v_proj)])
    )
    block.output.weight.data.copy_(theirs.o_proj.weight.data)


def run(theirs, config, x_BTC):
    seq_len = x_BTC.shape[1]
    mask = torch.full((seq_len, seq_len), float("-inf")).triu(1)[None, None]
    position_embeddings = LlamaRotaryEmbedding(config)(x_BTC, torch.arange(seq_len)[None])
    return theirs(x_BTC, position_embeddings=position_embeddings, attention_mask=mask)[0]


@pytest.mark.parametrize("n_kv_heads", [8, 2, 1])
@pytest.mark.parametrize("scaling", [None, YARN])
def test_equals_llama(n_kv_heads, scaling, make, noise):
    config = LlamaConfig(**SIZES, num_key_value_heads=n_kv_heads, head_dim=16, rope_theta=5e4, rope_scaling=scaling)
    theirs = LlamaAttention(config, layer_idx=0)
    fields = {"n_kv_heads": n_kv_heads, "head_dim": 16, "rope_theta": 5e4, "rope_scaling": scaling}
    block = make({"kind": "full", "n_heads": 8, **fields}, d_model=64, dtype=torch.float32)
    for index, parameter in enumerate(theirs.parameters()):
        parameter.data.copy_(noise(*parameter.shape, seed=index) / 8)
    copy_weights(block, theirs)
    x_BTC = noise(2, 70, 64).float()
    torch.testing.assert_close(block(x_BTC, Context.for_tokens(2, 70)), run(theirs, config, x_BTC), rtol=0, atol=1e-5)


def test_qk_norm_equals_qwen3(make, noise):
    config = Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5)
    theirs = Qwen3Attention(config, layer_idx=0)
    fields = {"n_heads": 8, "n_kv_heads": 2, "head_dim": 16, "qk_norm": True, "norm_eps": 1e-5}
    block = make({"kind": "full", **fields}, d_model=64, dtype=torch.float32)
    for index, parameter in enumerate(theirs.parameters()):
        parameter.data.copy_(noise(*parameter.shape, seed=index) / 8)
    copy_weights(block, theirs)
    block.projection.query_norm.weight.data.copy_(theirs.q_norm.weight.data)
    block.projection.key_norms[0].weight.data.copy_(theirs.k_norm.weight.data)
    x_BTC = noise(2, 70, 64).float()
    torch.testing.assert_close(block(x_BTC, Context.for_tokens(2, 70)), run(theirs, config, x_BTC), rtol=0, atol=1e-5)
