"""Tiny models of transformers with random weights, one or more of each family, without a download."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
WINDOWS = {"use_sliding_window": True, "sliding_window": 7}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 10, "sliding_window": 7}
GRANITE = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 13.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.3,
}
EXPERTS = {"head_dim": 8, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 8,
    "moe_intermediate_size": 12,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
}
GPT_OSS = {
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "sliding_window": 7,
    "rope_theta": 500.0,
    "rope_scaling": {**YARN, "truncate": False},
}
LLAMA4 = {
    "num_local_experts": 5,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "intermediate_size_mlp": 40,
    "attention_chunk_size": 7,
    "no_rope_layer_interval": 2,
    "floor_scale": 6,
    "attn_scale": 0.7,
}
MINIMAX = {"num_local_experts": 4, "rope_theta": 500.0, "num_hidden_layers": 4}
FACTORS = {f"{part}_alpha_factor": 1.7 for part in ("full_attn", "linear_attn", "mlp")}
FACTORS |= {f"{part}_beta_factor": 0.6 for part in ("full_attn", "linear_attn", "mlp")}
# What a first token reads of its state is a small number times its value: a norm with a small epsilon would enlarge
# errors of rounding until float32 itself, in either library, is 2e-4 from float64.
QWEN3_NEXT = {
    "rms_norm_eps": 0.01,
    **{key: EXPERTS[key] for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size")},
    "num_hidden_layers": 4,
    "head_dim": 8,
    "partial_rotary_factor": 0.5,
    "shared_expert_intermediate_size": 20,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "linear_conv_kernel_dim": 4,
}
MSCALE = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8}
# By name: the family, and the keys of its config that differ from SIZES.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, heads of another width": ("Llama", {"head_dim": 10, "num_key_value_heads": 4}),
    "llama, one key head, tied": ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, llama3 scaling": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 500.0}),
    "llama, yarn": ("Llama", {"rope_scaling": YARN}),
    "llama, linear scaling": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, gelu": ("Llama", {"hidden_act": "gelu"}),
    "llama, tanh gelu": ("Llama", {"hidden_act": "gelu_new"}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "mistral, no window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2, windows from layer 1": ("Qwen2", {**WINDOWS, "max_window_layers": 1}),
    "qwen2, layer types": ("Qwen2", {**WINDOWS, "layer_types": MIXED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "qwen3, wide heads and windows": ("Qwen3", {"head_dim": 16, **WINDOWS, "layer_types": MIXED}),
    "qwen3, biases": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}),
    "smollm3, no rotation in the first layer": ("SmolLM3", {"no_rope_layers": [0, 1, 1], "attention_bias": True}),
    "smollm3, windows": ("SmolLM3", {**WINDOWS, "no_rope_layer_interval": 2, "rope_scaling": LLAMA3}),
    "gemma3": ("Gemma3", {**GEMMA, "num_hidden_layers": 4, "sliding_window_pattern": 2}),
    "gemma3, scaled": (
        "Gemma3",
        {
            **GEMMA,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "layer_types": MIXED,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma2": ("Gemma2", {**GEMMA, "attn_logit_softcapping": 0.9, "final_logit_softcapping": 1.5}),
    "gemma2, scores not capped": ("Gemma2", {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": 1.5}),
    "olmo2": ("Olmo2", {"num_key_value_heads": 4}),
    "olmo2, groups and biases": ("Olmo2", {"attention_bias": True}),
    "olmo3": ("Olmo3", {"num_hidden_layers": 4, "sliding_window": 7, "rope_scaling": YARN}),
    "cohere": ("Cohere", {"logit_scale": 0.5}),
    "cohere, untied and biases": (
        "Cohere",
        {"tie_word_embeddings": False, "attention_bias": True, "rope_theta": 300.0},
    ),
    "cohere2": ("Cohere2", {"num_hidden_layers": 4, "sliding_window": 7}),
    "granite": ("Granite", GRANITE),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": 7}),
    "qwen3_moe": ("Qwen3Moe", EXPERTS),
    "qwen3_moe, dense layers": ("Qwen3Moe", {**EXPERTS, "mlp_only_layers": [1], "norm_topk_prob": True}),
    "deepseek_v3": ("DeepseekV3", DEEPSEEK),
    "deepseek_v3, yarn and no query latent": ("DeepseekV3", {**DEEPSEEK, "q_lora_rank": None, "rope_scaling": MSCALE}),
    "gpt_oss": ("GptOss", GPT_OSS),
    "gpt_oss, layer types": ("GptOss", {**GPT_OSS, "layer_types": MIXED, "rope_scaling": None}),
    "llama4_text": ("Llama4", LLAMA4),
    "llama4_text, dense layers and no norms": (
        "Llama4",
        {**LLAMA4, "num_hidden_layers": 3, "moe_layers": [1], "use_qk_norm": False, "attn_temperature_tuning": False}
        | {"no_rope_layers": [0, 1, 1], "layer_types": ["chunked_attention", "full_attention", "chunked_attention"]},
    ),
    "llama4_text, two experts of a token": (
        "Llama4",
        {**LLAMA4, "num_experts_per_tok": 2, "interleave_moe_layer_step": 2, "rope_scaling": LLAMA3},
    ),
    "minimax": ("MiniMax", MINIMAX),
    "minimax, scaled stream and a window": (
        "MiniMax",
        {**MINIMAX, **FACTORS, "sliding_window": 7, "block_size": 4, "num_key_value_heads": 4, "head_dim": 10}
        # Full first: with a cache, transformers (4.57) makes the mask of the window from the lengths of layer 0.
        | {"layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"]},
    ),
    "qwen3_next": ("Qwen3Next", QWEN3_NEXT),
    "qwen3_next, dense layers": (
        "Qwen3Next",
        {**QWEN3_NEXT, "mlp_only_layers": [1], "shared_expert_intermediate_size": 12, "norm_topk_prob": False}
        | {"num_hidden_layers": 3, "layer_types": ["full_attention", "linear_attention", "full_attention"]}
        | {"partial_rotary_factor": 1.0, "linear_num_key_heads": 4, "tie_word_embeddings": True},
    ),
    "phi3": ("Phi3", {"sliding_window": 7}),
    "phi3, half of a head rotates": ("Phi3", {"partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
}


# One or two of each family, for tests of what does not depend on the variant; the others run with `-m slow`.
WINDOWED = ("qwen2, layer types", "qwen3, wide heads and windows", "smollm3, windows")
EACH_FAMILY = [
    pytest.param(name, marks=() if "," not in name or name in WINDOWED else pytest.mark.slow) for name in CASES
]
CONFIGS = {"Gemma3": "Gemma3TextConfig", "Llama4": "Llama4TextConfig"}


def config_of(name: str, more: dict[str, Any] | None = None) -> transformers.PretrainedConfig:
    """The config of a case.  more: keys that differ from it."""
    family, keys = CASES[name]
    return getattr(transformers, CONFIGS.get(family, f"{family}Config"))(**{**SIZES, **keys, **(more or {})})


def make(config: transformers.PretrainedConfig, family: str, kind: str = "ForCausalLM") -> transformers.PreTrainedModel:
    """A model with random weights, large enough that a wrong mask, position or order of rows shows in the logits."""
    torch.manual_seed(0)
    model = getattr(transformers, family + kind)(config).eval()
    tensors = [*model.named_parameters(), *(each for each in model.named_buffers() if each[0].endswith("bias"))]
    with torch.no_grad():
        for name, parameter in tensors:
            less_one = family.startswith(("Gemma", "Qwen3Next")) and "linear_attn" not in name  # how scales are kept
            is_scale = name.endswith("norm.weight") and not less_one
            parameter.normal_(1.0 if is_scale else 0.0, 0.2)
    return model


def save(name: str, folder: Path, keys: dict[str, Any] | None = None) -> transformers.PreTrainedModel:
    """Write the model of a case into a folder, as transformers does, and return it."""
    model = make(config_of(name, keys), CASES[name][0])
    model.save_pretrained(folder)
    return model
