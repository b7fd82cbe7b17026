"""A zoo model and transformers' Llama with the same weights, in float64."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zoo.export.transformers_model import ZooConfig, ZooForCausalLM
from zoo.recipe import ModelConfig

VOCABULARY = 40
END = 39


def make_model(tied: bool = False, blocks: str = "full", **model) -> ZooForCausalLM:
    """A small model of blocks "full", "ansa" or "state", as `from_pretrained` makes it."""
    kinds = {
        "full": {"kind": "full", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8},
        "ansa": {"kind": "ansa", "n_heads": 2, "n_kv_heads": 1, "rope_dim": 4, "window": 8, "n_selected": 3},
        "state": {"kind": "gated_deltanet", "n_heads": 2, "head_dim": 8},
    }
    sizes = {"d_model": 32, "vocab_size": VOCABULARY, "max_seq_len": 64, "ffn": {"kind": "swiglu", "d_ff": 48}}
    written = {**sizes, "blocks": {"a": kinds[blocks]}, "layers": "a*2", "tie_embeddings": tied, **model}
    recipe = ModelConfig.model_validate(written).model_dump(mode="json")
    torch.manual_seed(0)
    made = ZooForCausalLM(ZooConfig(recipe, bos_token_id=END, eos_token_id=END, pad_token_id=END))
    with torch.no_grad():
        for parameter in made.parameters():  # large enough that wrong masks and positions show
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.3)
    return made.double().eval()


def make_llama(model: ZooForCausalLM) -> LlamaForCausalLM:
    """Llama with the weights of a model of full blocks."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=model.decoder.config.norm_eps,
        max_position_embeddings=64,
        rope_theta=10000.0,
        tie_word_embeddings=model.config.tie_word_embeddings,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        attn_implementation="sdpa",
    )
    llama, decoder = LlamaForCausalLM(config).double().eval(), model.decoder
    pairs = [(llama.model.embed_tokens, decoder.embedding), (llama.model.norm, decoder.norm)]
    for theirs, ours in zip(llama.model.layers, decoder.layers, strict=True):
        query, key, value = ours.attention.projection.input.weight.data.split([32, 16, 16])
        attention = theirs.self_attn
        for linear, weight in ((attention.q_proj, query), (attention.k_proj, key), (attention.v_proj, value)):
            linear.weight.data.copy_(weight)
        pairs += [(attention.o_proj, ours.attention.output), (theirs.input_layernorm, ours.attention_norm)]
        mlp, ffn = theirs.mlp, ours.feed_forward
        pairs += [(theirs.post_attention_layernorm, ours.feed_forward_norm), (mlp.down_proj, ffn.output)]
        pairs += [(mlp.gate_proj, ffn.gate), (mlp.up_proj, ffn.up)]
    if decoder.head is not None:
        pairs.append((llama.lm_head, decoder.head))
    for theirs, ours in pairs:
        theirs.weight.data.copy_(ours.weight.data)
    return llama


def make_tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    """Token numbers, none of them the end of a document."""
    return torch.randint(0, END, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def zoo_model():
    return make_model


@pytest.fixture(scope="session")
def llama_of():
    return make_llama


@pytest.fixture(scope="session")
def tokens():
    return make_tokens


@pytest.fixture(scope="session")
def pair():
    """A zoo model and Llama, which no test changes."""
    torch.set_num_threads(1)
    model = make_model()
    return model, make_llama(model)
