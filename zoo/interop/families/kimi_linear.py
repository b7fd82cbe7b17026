"""Kimi Linear (Moonshot AI): Kimi delta attention and latent layers without rotation, experts by a sigmoid router.

transformers (4.57) does not have the family; its code comes with the published weights, and is not run here.
"""

from dataclasses import dataclass

from zoo.interop.errors import InteropError
from zoo.interop.experts import SomeExperts
from zoo.interop.families.deepseek_v3 import BIAS, BIAS_STEP, LATENT_EPS
from zoo.interop.families.qwen3_next import Taps
from zoo.interop.family import ByHead, Form, Rule, Theirs
from zoo.interop.llama_like import DEFAULTS, FFN_NAMES, FULL

LINEAR = "linear_attention"
INPUTS = {"query": "q", "key": "k", "value": "v", "beta": "b", "decay_latent": "f_a", "gate_latent": "g_a"}


@dataclass(frozen=True)
class OfHeads(Form):
    """One number for each head, [1, 1, heads, 1]."""

    def to_ours(self, tensor):
        return tensor.flatten()

    def to_theirs(self, tensor):
        return tensor[None, None, :, None]


class KimiLinear(SomeExperts):
    """`linear_attn_config` lists the layers of either kind, counted from 1; the first layers are dense."""

    model_type = "kimi_linear"
    architecture = "KimiLinearForCausalLM"
    own_code = True
    other_kinds = ("kda",)
    bias_keys = ()
    length_key = "model_max_length"
    active_key = "num_experts_per_token"
    place = "block_sparse_moe."
    expert_names = {"gate": "w1", "up": "w3", "down": "w2"}
    defaults = DEFAULTS | {  # of the published config class
        "vocab_size": 163840,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_shared_experts": 0,
        "moe_renormalize": True,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 0,
        "num_expert_group": 1,
        "topk_group": 1,
        "router_aux_loss_coef": 0.0,
    }

    def read_layer_types(self, keys, n_layers):
        name = "linear_attn_config"
        written = keys.mapping(name)
        if written is None:
            keys.refuse(name, "must be a mapping")
        inside = keys.inside(name, written)
        lists = [inside.value("kda_layers"), inside.value("full_attn_layers")]
        if not all(isinstance(one, list) and all(type(index) is int for index in one) for one in lists):
            keys.refuse(name, "must list kda_layers and full_attn_layers, counted from 1")
        kda, full = lists
        if sorted(kda + full) != list(range(1, n_layers + 1)):
            keys.refuse(name, f"must name each of the {n_layers} layers once in kda_layers or full_attn_layers")
        return [LINEAR if index in kda else FULL for index in range(1, n_layers + 1)]

    def read_rope(self, keys, max_seq_len):
        for name in ("rope_theta", "rope_scaling"):
            keys.value(name, None)  # nothing is rotated
        return {"rope": False}

    def read_attention(self, keys, d_model):
        n_heads = keys.count("num_attention_heads")
        if keys.value("num_key_value_heads") is not None:
            keys.only("num_key_value_heads", n_heads, "every head has its own key and value")
        keys.only("q_lora_rank", None, "the published code knows no other")
        if keys.value("mla_use_nope", None) is not True:
            keys.refuse("mla_use_nope", "must be true, because the published code rotates nothing")
        keys.value("head_dim", None)  # hidden_size / num_attention_heads, which nothing has
        return {
            "n_heads": n_heads,
            "head_dim": keys.count("qk_nope_head_dim"),
            "rope_dim": keys.count("qk_rope_head_dim"),
            "v_head_dim": keys.count("v_head_dim"),
            "kv_rank": keys.count("kv_lora_rank"),
            "norm_eps": LATENT_EPS,
        }

    def read_block(self, keys, attention, kind, index):
        if kind == FULL:
            return {"kind": "mla", **attention}
        inside = keys.inside("linear_attn_config", keys.mapping("linear_attn_config") or {})
        for name in ("kda_layers", "full_attn_layers"):
            inside.value(name)
        fields = {
            "kind": "kda",
            "n_heads": inside.count("num_heads"),
            "head_dim": inside.count("head_dim"),
            "conv_size": inside.count("short_conv_kernel_size"),
            "norm_eps": keys.number("rms_norm_eps"),
        }
        inside.finish()
        return fields | {"v_head_dim": fields["head_dim"]}

    def read_ffns(self, keys, n_layers):
        only = {"moe_router_activation_func": "sigmoid", "use_grouped_topk": True, "moe_layer_freq": 1}
        for name, value in (only | {"num_nextn_predict_layers": 0}).items():
            keys.only(name, value, "no other is read")
        first = keys.count("first_k_dense_replace", least=0)
        experts = self.read_experts(keys, keys.flag("moe_renormalize")) | {
            "router": "sigmoid",
            "route_scale": keys.number("routed_scaling_factor"),
            "n_shared": keys.count("num_shared_experts", least=0),
            "n_groups": keys.count("num_expert_group"),
            "groups_active": keys.count("topk_group"),
            "balance_rate": BIAS_STEP,
        }
        return self.mixed(keys, [index < first for index in range(n_layers)], experts)

    def check_block(self, layer):
        point = layer.mixer.attention
        latent = point is not None and point.projection.kind == "mla"
        if not (latent and [p.kind for p in point.patterns] == ["full"]) and layer.kind not in self.other_kinds:
            found = layer.kind if point is None else point.describe()
            where = f"layer {layer.index} ({layer.block})"
            raise InteropError(f"{where}: {self.model_type} has kda, or mla over all keys; found {found}")
        self.check_ffn(layer)

    def write_head_dim(self, model, projection):
        return {
            "qk_nope_head_dim": projection.head_dim,
            "qk_rope_head_dim": projection.rope_dim,
            "v_head_dim": projection.v_head_dim,
            "kv_lora_rank": projection.kv_rank,
            "mla_use_nope": True,
        }

    def write_rope(self, layers):
        return {}

    def write_layer_types(self, layers):
        state = next((layer.mixer for layer in layers if layer.mixer.attention is None), None)
        written = {
            "kda_layers": [layer.index + 1 for layer in layers if layer.mixer.attention is None],
            "full_attn_layers": [layer.index + 1 for layer in layers if layer.mixer.attention is not None],
        }
        if state is not None:
            sizes = {"num_heads": state.n_heads, "head_dim": state.head_dim, "short_conv_kernel_size": state.conv_size}
            written |= sizes
        return {"linear_attn_config": written}

    def write_dense(self, dense):
        return {"first_k_dense_replace": len(dense)}

    def write_experts(self, ffn):
        return super().write_experts(ffn) | {
            "moe_renormalize": ffn.normalise,
            "moe_router_activation_func": "sigmoid",
            "routed_scaling_factor": ffn.route_scale,
            "num_shared_experts": ffn.n_shared,
            "num_expert_group": ffn.n_groups,
            "topk_group": ffn.of_groups,
        }

    def attention_rules(self, layer, ours, theirs):
        rules = self._state_rules if layer.mixer.attention is None else self._latent_rules
        yield from rules(layer, ours, theirs)
        yield Rule.same(f"{ours}output.weight", f"{theirs}o_proj.weight")

    def _latent_rules(self, layer, ours, theirs):
        p = layer.mixer.attention.projection
        both = (
            Theirs(f"{theirs}q_proj.weight", p.n_heads * p.qk_dim),
            Theirs(f"{theirs}kv_a_proj_with_mqa.weight", p.kv_rank + p.rope_dim),
        )
        yield Rule((f"{ours}projection.input.weight",), both)
        yield Rule.same(f"{ours}projection.latent_norm.weight", f"{theirs}kv_a_layernorm.weight")
        ups = (f"{ours}projection.key_up.weight", f"{ours}projection.value_up.weight")
        by_head = ByHead(p.n_heads, (p.head_dim, p.v_head_dim))
        yield Rule(ups, (Theirs(f"{theirs}kv_b_proj.weight", form=by_head),))

    def _state_rules(self, layer, ours, theirs):
        config = layer.mixer
        rows = config.rows()
        yield Rule(
            (f"{ours}input.weight",),
            tuple(Theirs(f"{theirs}{other}_proj.weight", rows[one]) for one, other in INPUTS.items()),
        )
        taps = (
            Theirs(f"{theirs}{INPUTS[one]}_conv1d.weight", rows[one], Taps(), (rows[one], 1, config.conv_size))
            for one in ("query", "key", "value")
        )
        yield Rule((f"{ours}conv_weight",), tuple(taps))
        heads = Theirs(f"{theirs}A_log", form=OfHeads(), shape=(1, 1, config.n_heads, 1))
        yield Rule((f"{ours}decay_log_rate",), (heads,))
        names = {"decay_bias": "dt_bias", "decay.weight": "f_b_proj.weight", "gate.weight": "g_b_proj.weight"}
        for one, other in (names | {"norm.weight": "o_norm.weight"}).items():
            yield Rule.same(f"{ours}{one}", f"{theirs}{other}")

    def ffn_rules(self, layer, ours, theirs):
        yield from super().ffn_rules(layer, ours, theirs)
        if layer.ffn.kind == "moe":
            place = theirs.removesuffix("mlp.") + self.place
            yield Rule.same(f"{ours}{BIAS}", f"{place}gate.e_score_correction_bias")
            if layer.ffn.n_shared:
                for one, other in FFN_NAMES.items():
                    yield Rule.same(f"{ours}shared.{one}.weight", f"{place}shared_experts.{other}.weight")


FAMILY = KimiLinear()
