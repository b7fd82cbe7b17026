"""Kimi Linear, which transformers does not have: a tiny folder against the formulas of its report, written here.

The recurrence is that of flash-linear-attention (`naive_recurrent_kda`); the rest is plain torch, token for token, on
the tensors of the folder by their published names.
"""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import zoo
from zoo.export.writing import export
from zoo.interop.architecture import facts, read_config
from zoo.interop.errors import InteropError
from zoo.interop.importing import import_folder
from zoo.recipe import load_recipe

CONFIG = {
    "architectures": ["KimiLinearForCausalLM"],
    "model_type": "kimi_linear",
    "auto_map": {"AutoModelForCausalLM": "modeling_kimi.KimiLinearForCausalLM"},
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "model_max_length": 96, "rms_norm_eps": 0.01, "rope_theta": 10000.0, "rope_scaling": None,
    "tie_word_embeddings": False, "hidden_act": "silu", "q_lora_rank": None, "kv_lora_rank": 12,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "mla_use_nope": True, "head_dim": 8,
    "num_experts": 6, "num_experts_per_token": 2, "num_shared_experts": 1, "moe_intermediate_size": 12,
    "moe_router_activation_func": "sigmoid", "moe_renormalize": True, "routed_scaling_factor": 2.446,
    "use_grouped_topk": True, "num_expert_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "num_nextn_predict_layers": 0,
    "linear_attn_config": {"head_dim": 6, "num_heads": 3, "short_conv_kernel_size": 4, "full_attn_layers": [3],
                           "kda_layers": [1, 2, 4]},
}  # fmt: skip
KDA, HEADS, WIDTH, TAPS = CONFIG["linear_attn_config"], 3, 6, 4


def tensors() -> dict[str, torch.Tensor]:
    """Random ones under the published names."""
    c, inner = CONFIG, HEADS * WIDTH
    shapes = {"model.embed_tokens.weight": (61, 32), "lm_head.weight": (61, 32), "model.norm.weight": (32,)}
    for index in range(4):
        place = f"model.layers.{index}."
        shapes |= {f"{place}{name}_layernorm.weight": (32,) for name in ("input", "post_attention")}
        at = f"{place}self_attn."
        if index + 1 in KDA["kda_layers"]:
            shapes |= {f"{at}{name}_proj.weight": (inner, 32) for name in "qkv"}
            shapes |= {f"{at}{name}_conv1d.weight": (inner, 1, TAPS) for name in "qkv"}
            shapes |= {f"{at}{name}_a_proj.weight": (WIDTH, 32) for name in "fg"}
            shapes |= {f"{at}{name}_b_proj.weight": (inner, WIDTH) for name in "fg"}
            shapes |= {f"{at}A_log": (1, 1, HEADS, 1), f"{at}dt_bias": (inner,), f"{at}b_proj.weight": (HEADS, 32)}
            shapes |= {f"{at}o_norm.weight": (WIDTH,), f"{at}o_proj.weight": (32, inner)}
        else:
            shapes |= {f"{at}q_proj.weight": (4 * 12, 32), f"{at}kv_a_proj_with_mqa.weight": (12 + 4, 32)}
            shapes |= {f"{at}kv_a_layernorm.weight": (12,), f"{at}kv_b_proj.weight": (4 * (8 + 6), 12)}
            shapes |= {f"{at}o_proj.weight": (32, 4 * 6)}
        maps = {"gate_proj": (40, 32), "up_proj": (40, 32), "down_proj": (32, 40)}
        if index < c["first_k_dense_replace"]:
            shapes |= {f"{place}mlp.{name}.weight": shape for name, shape in maps.items()}
            continue
        moe = f"{place}block_sparse_moe."
        shapes |= {f"{moe}gate.weight": (6, 32), f"{moe}gate.e_score_correction_bias": (6,)}
        shared = {"gate_proj": (12, 32), "up_proj": (12, 32), "down_proj": (32, 12)}
        shapes |= {f"{moe}shared_experts.{name}.weight": shape for name, shape in shared.items()}
        for expert in range(6):
            shapes |= {f"{moe}experts.{expert}.{name}.weight": (12, 32) for name in ("w1", "w3")}
            shapes |= {f"{moe}experts.{expert}.w2.weight": (32, 12)}
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    return {name: tensor + ("norm.weight" in name) for name, tensor in made.items()}


def rms(x, weight, eps):
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def delta(x_BTC, w):
    """Kimi delta attention, section 3 of the report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fla.ops.kda.naive import naive_recurrent_kda

    def mixed(name):
        made = F.pad((x_BTC @ w[f"{name}_proj.weight"].T).mT, (TAPS - 1, 0))
        taps = w[f"{name}_conv1d.weight"]
        return F.silu(F.conv1d(made, taps, groups=len(taps))).mT.unflatten(-1, (HEADS, WIDTH))

    def unit(x):
        return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()

    q, k, v = unit(mixed("q")), unit(mixed("k")), mixed("v")
    steps = F.softplus(x_BTC @ w["f_a_proj.weight"].T @ w["f_b_proj.weight"].T + w["dt_bias"])
    decay = -w["A_log"].exp() * steps.unflatten(-1, (HEADS, WIDTH))
    o, _ = naive_recurrent_kda(q, k, v, decay, (x_BTC @ w["b_proj.weight"].T).sigmoid())
    gate = (x_BTC @ w["g_a_proj.weight"].T @ w["g_b_proj.weight"].T).sigmoid()
    return (rms(o, w["o_norm.weight"], 0.01).flatten(-2) * gate) @ w["o_proj.weight"].T


def latent(x_BTC, w):
    """MLA: the 4 channels that all heads share are not rotated."""
    q = (x_BTC @ w["q_proj.weight"].T).unflatten(-1, (4, 12))
    c, shared = (x_BTC @ w["kv_a_proj_with_mqa.weight"].T).split([12, 4], -1)
    up = (rms(c, w["kv_a_layernorm.weight"], 1e-6) @ w["kv_b_proj.weight"].T).unflatten(-1, (4, 14))
    k = torch.cat([up[..., :8], shared[:, :, None].expand(-1, -1, 4, -1)], -1)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * 12**-0.5
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, up[..., 8:]).flatten(-2) @ w["o_proj.weight"].T


def swiglu(x, w, names):
    gate, up, down = (w[f"{name}.weight"] for name in names)
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def experts(x_BTC, w):
    """Two of six, chosen by score and bias, weighted by their scores alone."""
    scores = (x_BTC @ w["gate.weight"].T).sigmoid()
    chosen = (scores + w["gate.e_score_correction_bias"]).topk(2, -1).indices
    weights = scores.gather(-1, chosen)
    weights = 2.446 * weights / weights.sum(-1, keepdim=True)
    each = [swiglu(x_BTC, inside(w, f"experts.{e}."), ("w1", "w3", "w2")) for e in range(6)]
    y = swiglu(x_BTC, inside(w, "shared_experts."), ("gate_proj", "up_proj", "down_proj"))
    for place in range(2):
        picked = torch.stack(each, 2).gather(2, chosen[..., place, None, None].expand(-1, -1, 1, 32))[:, :, 0]
        y = y + weights[..., place, None] * picked
    return y


def inside(w, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}


def expected(w, tokens_BT):
    """Logits of the whole model."""
    x = w["model.embed_tokens.weight"][tokens_BT]
    for index in range(4):
        at = inside(w, f"model.layers.{index}.")
        attend = delta if index + 1 in KDA["kda_layers"] else latent
        x = x + attend(rms(x, at["input_layernorm.weight"], 0.01), inside(at, "self_attn."))
        read = rms(x, at["post_attention_layernorm.weight"], 0.01)
        dense = index < CONFIG["first_k_dense_replace"]
        maps = ("gate_proj", "up_proj", "down_proj")
        x = x + (swiglu(read, inside(at, "mlp."), maps) if dense else experts(read, inside(at, "block_sparse_moe.")))
    return rms(x, w["model.norm.weight"], 0.01) @ w["lm_head.weight"].T


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny folder, and its run."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("kimi")
    (path / "theirs").mkdir()
    save_file(tensors(), path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    (path / "theirs" / "config.json").write_text(json.dumps(CONFIG))
    import_folder(path / "theirs", path / "run")
    return path


def test_logits_and_greedy_tokens(folder):
    ours, w = zoo.load(folder / "run"), tensors()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for length in (1, 7, 33, 70):  # across the chunks of 16 and 64 tokens that the state is computed in
            tokens_BT = torch.randint(61, (2, length), generator=generator)
            torch.testing.assert_close(ours(tokens_BT), expected(w, tokens_BT), rtol=1e-5, atol=1e-5)
        prompt = tokens_BT[:1, :5]
        found = zoo.generate(ours, prompt.tolist(), max_tokens=12, temperature=0.0).results[0].tokens
        for _ in range(12):
            prompt = torch.cat([prompt, expected(w, prompt)[:, -1:].argmax(-1)], 1)
    assert found == prompt[0, 5:].tolist()


def test_it_is_exported_as_it_was(folder, tmp_path):
    export(folder / "run", tmp_path / "back", family="kimi_linear")
    before, after = tensors(), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-7)
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    kept = {name: value for name, value in CONFIG.items() if name in written}
    assert kept.keys() >= {"linear_attn_config", "num_experts", "qk_nope_head_dim", "model_max_length"}
    assert {name: written[name] for name in kept} == kept


def test_the_recipe_is_what_an_import_makes_of_the_published_config():
    from tests.zoo.test_published_models import KIMI, RECIPES

    _, imported = read_config({**KIMI, "model_type": "kimi_linear"}, "config.json")
    assert facts(load_recipe(RECIPES / "kimi_linear_48b.yaml").model) == facts(imported)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mla_use_nope": False}, "mla_use_nope: must be true, because the published code rotates nothing"),
        ({"q_lora_rank": 8}, "q_lora_rank: must be nothing, because the published code knows no other"),
        ({"linear_attn_config": None}, "linear_attn_config: must be a mapping"),
        ({"linear_attn_config": {**KDA, "kda_layers": [1, 2]}}, "must name each of the 4 layers once"),
        ({"linear_attn_config": {**KDA, "kda_layers": "all"}}, "must list kda_layers and full_attn_layers"),
        ({"linear_attn_config": {**KDA, "gate_lower_bound": -5}}, r"linear_attn_config\.gate_lower_bound: not a key"),
        ({"moe_router_activation_func": "softmax"}, "moe_router_activation_func: must be 'sigmoid'"),
    ],
)
def test_what_a_recipe_cannot_say_is_refused(changes, why):
    with pytest.raises(InteropError, match=why):
        read_config(CONFIG | changes, "config.json")
