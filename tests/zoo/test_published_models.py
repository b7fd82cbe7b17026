"""recipes/models/: each recipe has the parameters of transformers' model, and is what `zoo import` makes of its config.

The numbers are those of the published config.json files; models are built on the meta device, without memory.
"""

from pathlib import Path

import pytest
import torch
import transformers

from zoo.counting.model_cost import model_cost
from zoo.docs.models_page import comment, models_page
from zoo.interop.architecture import facts, read_config
from zoo.interop.errors import InteropError
from zoo.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "models"
LLAMA3 = {"rope_type": "llama3", "original_max_position_embeddings": 8192}
GEMMA = {"head_dim": 256, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh"}
EXPERTS = {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048}


def sizes(width: int, d_ff: int, layers: int, heads: int, kv_heads: int, vocab: int, context: int, **more) -> dict:
    """The keys that every config.json has."""
    return {
        "hidden_size": width,
        "intermediate_size": d_ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        **more,
    }


# By recipe: the class of transformers, its config class where that is another name, and the published keys.
PUBLISHED = {
    "llama31_8b": ("Llama", sizes(
        4096, 14336, 32, 32, 8, 128256, 131072, rms_norm_eps=1e-5, rope_theta=500000.0,
        rope_scaling={**LLAMA3, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    )),
    "mistral_7b": ("Mistral", sizes(
        4096, 14336, 32, 32, 8, 32000, 32768, rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096,
    )),
    "qwen2_7b": ("Qwen2", sizes(
        3584, 18944, 28, 28, 4, 152064, 131072, rms_norm_eps=1e-6, rope_theta=1000000.0, use_sliding_window=False,
        sliding_window=131072, max_window_layers=28,
    )),
    "qwen3_8b": ("Qwen3", sizes(
        4096, 12288, 36, 32, 8, 151936, 40960, rms_norm_eps=1e-6, rope_theta=1000000.0, head_dim=128,
        attention_bias=False, use_sliding_window=False, sliding_window=None, max_window_layers=36,
    )),
    "gemma2_9b": ("Gemma2", sizes(
        3584, 14336, 42, 16, 8, 256000, 8192, **GEMMA, rope_theta=10000.0, sliding_window=4096,
        attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
    )),
    "gemma3_4b": ("Gemma3", sizes(
        2560, 10240, 34, 8, 4, 262208, 131072, **GEMMA, rope_theta=1000000.0, rope_local_base_freq=10000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0}, sliding_window=1024, sliding_window_pattern=6,
    )),
    "olmo3_7b": ("Olmo3", sizes(
        4096, 11008, 32, 32, 32, 100278, 65536, rms_norm_eps=1e-6, rope_theta=500000.0, sliding_window=4096,
        rope_scaling={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192, "beta_fast": 32.0,
                      "beta_slow": 1.0},
    )),
    "smollm3_3b": ("SmolLM3", sizes(
        2048, 11008, 36, 16, 4, 128256, 65536, rms_norm_eps=1e-6, rope_theta=5000000.0, no_rope_layer_interval=4,
        no_rope_layers=[1, 1, 1, 0] * 9, use_sliding_window=False, sliding_window=None, tie_word_embeddings=True,
    )),
    "command_r7b": ("Cohere2", sizes(
        4096, 14336, 32, 32, 8, 256000, 132096, layer_norm_eps=1e-5, rope_theta=50000.0, head_dim=128,
        sliding_window=4096, sliding_window_pattern=4, logit_scale=0.25,
    )),
    "deepseek_v3": ("DeepseekV3", sizes(
        7168, 18432, 61, 128, 128, 129280, 163840, **EXPERTS, rms_norm_eps=1e-6, rope_theta=10000.0,
        kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
        first_k_dense_replace=3, n_group=8, topk_group=4, routed_scaling_factor=2.5, norm_topk_prob=True,
        rope_scaling={"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0,
                      "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    )),
    "gpt_oss_20b": ("GptOss", sizes(
        2880, 2880, 24, 64, 8, 201088, 131072, rms_norm_eps=1e-5, rope_theta=150000.0, head_dim=64, sliding_window=128,
        num_local_experts=32, num_experts_per_tok=4, swiglu_limit=7.0, router_aux_loss_coef=0.9,
        rope_scaling={"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0,
                      "beta_slow": 1.0, "truncate": False},
    )),
    "qwen3_next_80b": ("Qwen3Next", sizes(
        2048, 5120, 48, 16, 2, 151936, 262144, rms_norm_eps=1e-6, rope_theta=10000000.0, head_dim=256,
        partial_rotary_factor=0.25, full_attention_interval=4, linear_num_key_heads=16, linear_num_value_heads=32,
        linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4, num_experts=512,
        num_experts_per_tok=10, moe_intermediate_size=512, shared_expert_intermediate_size=512, norm_topk_prob=True,
        decoder_sparse_step=1,
    )),
    "minimax_01": ("MiniMax", sizes(
        6144, 9216, 80, 64, 8, 200064, 10240000, rms_norm_eps=1e-5, rope_theta=10000000.0, head_dim=128, rotary_dim=64,
        num_local_experts=32, num_experts_per_tok=2, postnorm=True, shared_intermediate_size=0,
        shared_moe_mode="sigmoid", layer_types=[*["linear_attention"] * 7, "full_attention"] * 10,
        router_aux_loss_coef=0.001,
        **{f"{part}_alpha_factor": 3.5565588200778455 for part in ("full_attn", "linear_attn", "mlp")},
        **{f"{part}_beta_factor": 1.0 for part in ("full_attn", "linear_attn", "mlp")},
    )),
    "llama4_scout": ("Llama4", sizes(
        5120, 8192, 48, 40, 8, 202048, 10485760, rms_norm_eps=1e-5, rope_theta=500000.0, head_dim=128,
        intermediate_size_mlp=16384, num_local_experts=16, num_experts_per_tok=1, interleave_moe_layer_step=1,
        attention_chunk_size=8192, use_qk_norm=True, attn_temperature_tuning=True, floor_scale=8192, attn_scale=0.1,
        rope_scaling={**LLAMA3, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0},
    )),
}  # fmt: skip
# Its class is not in transformers; the numbers are those of its published config.json.
KIMI = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 27, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 163840, "model_max_length": 1048576, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": False, "hidden_act": "silu",
    "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "mla_use_nope": True, "num_experts": 256, "num_experts_per_token": 8, "num_shared_experts": 1,
    "moe_intermediate_size": 1024, "moe_router_activation_func": "sigmoid", "moe_renormalize": True,
    "routed_scaling_factor": 2.446, "use_grouped_topk": True, "num_expert_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_nextn_predict_layers": 0, "head_dim": 72,
    "linear_attn_config": {
        "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4,
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "kda_layers": [n for n in range(1, 28) if n % 4 and n != 27],
    },
}  # fmt: skip
CONFIGS = {"Gemma3": "Gemma3TextConfig", "Llama4": "Llama4TextConfig"}

# Further keys of published config.json files: those that transformers writes itself are left out.
FURTHER = {
    "qwen2_7b": {"use_mrope": False},
    "gemma2_9b": {"hidden_act": "gelu_pytorch_tanh", "sliding_window_size": 4096, "cache_implementation": "hybrid"},
    "gemma3_4b": {"cache_implementation": "hybrid", "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "smollm3_3b": {"max_window_layers": 28, "layer_types": ["full_attention"] * 36, "pretraining_tp": 2},
    "command_r7b": {
        "cache_implementation": "hybrid", "layer_switch": 4, "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj", "rotary_pct": 1.0, "use_embedding_sharing": True,
        "use_gated_activation": True, "use_parallel_block": True, "use_parallel_embedding": True,
    },
    "deepseek_v3": {
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "aux_loss_alpha": 0.001, "ep_size": 1,
        "moe_layer_freq": 1, "num_nextn_predict_layers": 1, "scoring_func": "sigmoid", "seq_aux": True,
        "topk_method": "noaux_tc", "pretraining_tp": 1,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                         "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "gpt_oss_20b": {
        "attention_bias": True, "experts_per_token": 4, "initial_context_length": 4096, "output_router_logits": False,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
    },
    "qwen3_next_80b": {"use_sliding_window": False, "mlp_only_layers": [], "output_router_logits": False},
    "llama4_scout": {
        "attn_temperature_tuning": 4, "for_llm_compressor": False, "cache_implementation": "hybrid",
        "moe_layers": list(range(48)), "no_rope_layers": [1, 1, 1, 0] * 12, "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
    },
}  # fmt: skip
# Of models that have no recipe: keys that only the published file has, without sizes.
ELSEWHERE = {
    "phi3": {
        "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "original_max_position_embeddings": 4096,
        "sliding_window": 2047,
    },
    "cohere": {"architectures": ["CohereForCausalLM"], "model_max_length": 131072, "use_qk_norm": False},
    "granite": {"architectures": ["GraniteForCausalLM"], "attention_dropout": 0.1, "mlp_bias": False},
    "deepseek_v3": {
        "architectures": ["DeepseekV3ForCausalLM"], "auto_map": {"AutoModel": "m.D"}, "q_lora_rank": None,
        "num_nextn_predict_layers": 0, "rope_theta": 50000.0,
    },
}  # fmt: skip


def config_of(name: str, **changes):
    family, keys = PUBLISHED[name]
    return getattr(transformers, CONFIGS.get(family, f"{family}Config"))(**{**keys, **changes})


def parameters(name: str, **changes) -> int:
    """Of transformers' model with the published numbers; tied weights count once."""
    with torch.device("meta"):
        model = getattr(transformers, f"{PUBLISHED[name][0]}ForCausalLM")(config_of(name, **changes))
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


# Of models with tens of thousands of modules: keys of one layer, of two equal ones, of two that differ, and how many
# layers there are of each kind; and the key of the number of experts.
FEW = {
    "deepseek_v3": ([{"num_hidden_layers": n, "first_k_dense_replace": dense} for n, dense in ((1, 1), (2, 2), (2, 1))],
                    3, 58, "n_routed_experts"),
    "qwen3_next_80b": ([{"num_hidden_layers": len(kinds), "layer_types": [f"{kind}_attention" for kind in kinds]}
                        for kinds in (["linear"], ["linear"] * 2, ["linear", "full"])], 36, 12, "num_experts"),
    "minimax_01": ([{"num_hidden_layers": len(kinds), "layer_types": [f"{kind}_attention" for kind in kinds]}
                    for kinds in (["linear"], ["linear"] * 2, ["linear", "full"])], 70, 10, "num_local_experts"),
}  # fmt: skip


def published_parameters(name: str) -> int:
    """Of the whole model, from what a layer of each kind has where it is large."""
    if name not in FEW:
        return parameters(name)
    changes, n_first, n_second, key = FEW[name]

    def with_all_experts(**each) -> int:
        one, two = (parameters(name, **each, **{key: n}) for n in (1, 2))
        return one + (PUBLISHED[name][1][key] - 1) * (two - one)

    one, two, mixed = (with_all_experts(**each) for each in changes)
    return one + (n_first - 1) * (two - one) + n_second * (mixed - one)


def test_every_recipe_is_tested():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*PUBLISHED, "kimi_linear_48b"}


def test_kimi_linear_has_the_parameters_that_its_config_says():
    """By arithmetic. The bias of the router, 256 numbers a layer, is no parameter here, because it is not trained."""
    c, linear = KIMI, KIMI["linear_attn_config"]
    width, heads, rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    inner = linear["num_heads"] * linear["head_dim"]
    maps = 4 * width * inner + 2 * (width + inner) * linear["head_dim"] + width * linear["num_heads"]
    kda = maps + 3 * inner * linear["short_conv_kernel_size"] + inner + linear["num_heads"] + linear["head_dim"]
    key, value = c["qk_nope_head_dim"], c["v_head_dim"]
    latent = width * (rank + c["qk_rope_head_dim"]) + rank + rank * heads * (key + value)
    mla = latent + width * heads * (key + c["qk_rope_head_dim"]) + heads * value * width
    expert = 3 * width * c["moe_intermediate_size"]
    moe = (c["num_experts"] + c["num_shared_experts"]) * expert + width * c["num_experts"]
    attention = len(linear["kda_layers"]) * kda + len(linear["full_attn_layers"]) * mla
    ffn = 3 * width * c["intermediate_size"] + (c["num_hidden_layers"] - 1) * moe
    total = 2 * c["vocab_size"] * width + attention + ffn + (2 * c["num_hidden_layers"] + 1) * width
    cost = model_cost(load_recipe(RECIPES / "kimi_linear_48b.yaml").model, 1)
    assert cost.parameters["total"] == total == 49_122_675_072
    assert round(cost.active_parameters / 1e9) == 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_are_those_of_the_published_model(name):
    parameters = model_cost(load_recipe(RECIPES / f"{name}.yaml").model, 1).parameters
    further = parameters.get("multi_token", 0)  # modules that transformers leaves out
    assert parameters["total"] - further == published_parameters(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_is_what_an_import_makes_of_the_config(name):
    written = config_of(name).to_dict()
    _, imported = read_config(written, "config.json")
    assert facts(load_recipe(RECIPES / f"{name}.yaml").model) == facts(imported)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_config_needs_no_ignored_key(name):
    family, keys = PUBLISHED[name]
    written = {**keys, **FURTHER.get(name, {}), "attention_dropout": 0.0, "torch_dtype": "bfloat16", "use_cache": True}
    written |= {"architectures": [f"{family}ForCausalLM"], "model_type": config_of(name).model_type}
    _, imported = read_config(written, "config.json")
    assert facts(load_recipe(RECIPES / f"{name}.yaml").model) == facts(imported)


@pytest.mark.parametrize("model_type", ELSEWHERE)
def test_keys_of_other_published_configs_change_nothing_that_transformers_reads(model_type):
    written = {"model_type": model_type, **ELSEWHERE[model_type]}
    _, imported = read_config(written, "config.json")
    theirs = type(transformers.AutoConfig.for_model(model_type))(**written).to_dict()
    _, known = read_config({key: value for key, value in theirs.items() if key != "auto_map"}, "config.json")
    assert facts(imported) == facts(known)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("command_r7b", "layer_switch", 3),
        ("command_r7b", "rotary_pct", 0.5),
        ("command_r7b", "position_embedding_type", "rope_neox"),
        ("command_r7b", "use_embedding_sharing", False),
        ("gemma2_9b", "hidden_act", "gelu"),
        ("gemma2_9b", "sliding_window_size", 2048),
        ("gpt_oss_20b", "experts_per_token", 3),
        ("qwen3_next_80b", "use_sliding_window", True),
    ],
)
def test_a_key_that_states_something_once_more_must_agree(name, key, value):
    written = {**PUBLISHED[name][1], **FURTHER[name], "model_type": config_of(name).model_type, key: value}
    with pytest.raises(InteropError, match=f"config.json: {key}: must be .*; found"):
        read_config(written, "config.json")


@pytest.mark.parametrize("name", [*PUBLISHED, "kimi_linear_48b"])
def test_its_first_lines_say_what_is_missing(name):
    path = RECIPES / f"{name}.yaml"
    assert "Architecture only. " in comment(path)
    assert "Nothing is missing." in comment(path) or "Missing: " in comment(path)
    assert load_recipe(path).name == name


def test_the_gallery_shows_every_model():
    page = models_page(ROOT)
    for name in PUBLISHED:
        assert f"| [`{name}`]({name}.md) | `" in page
        assert f"\n## {name}\n" in page
    assert "| `local*5 global ... cut` | 3.88B | 3.88B |" in page
    assert "| `(linear*7 full)*10` | 456.1B | 48.40B |" in page
    assert "| `mla*61` | 682.6B | 37.55B |" in page
