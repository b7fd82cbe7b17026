"""Qwen3-Next (Alibaba): gated DeltaNet and gated full layers, experts with a gated shared one."""

from dataclasses import dataclass

from zoo.interop.families.qwen3_moe import Qwen3Moe
from zoo.interop.family import ByHead, Form, OneLess, Rule, Theirs, concatenated
from zoo.interop.llama_like import FFN_NAMES, FULL

LINEAR = "linear_attention"
MODULE = "mtp."  # what the tensors of the module that predicts a further token begin with
MODULE_NORMS = {"embedding_norm": "pre_fc_norm_embedding", "hidden_norm": "pre_fc_norm_hidden", "norm": "norm"}


@dataclass(frozen=True)
class QueryAndGate(Form):
    """Rows of each head: its query, then its output gate; in ours all gates come first, then all queries."""

    n_heads: int

    def to_ours(self, tensor):
        query, gate = tensor.unflatten(0, (self.n_heads, 2, -1)).unbind(1)
        return concatenated([gate.flatten(0, 1), query.flatten(0, 1)], 0)

    def to_theirs(self, tensor):
        gate, query = tensor.unflatten(0, (2, self.n_heads, -1)).unbind(0)
        return concatenated([query.unsqueeze(1), gate.unsqueeze(1)]).flatten(0, 2)


class Taps(Form):
    """The weights of a convolution of each channel by itself, [channels, 1, tokens]; ours have no middle size."""

    def to_ours(self, tensor):
        return tensor.squeeze(1)

    def to_theirs(self, tensor):
        return tensor.unsqueeze(1)


class Qwen3Next(Qwen3Moe):
    """`layer_types`, else every fourth layer is full.

    The config does not say whether there is a module that predicts a further token; its tensors do.
    """

    model_type = "qwen3_next"
    architecture = "Qwen3NextForCausalLM"
    norm_form = OneLess()
    other_kinds = ("gated_deltanet",)
    multi_token = True
    defaults = Qwen3Moe.defaults | {
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "partial_rotary_factor": 0.25,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts_per_tok": 10,
        "num_experts": 512,
        "norm_topk_prob": True,
    }

    def read_layer_types(self, keys, n_layers):
        keys.only("use_sliding_window", False, "transformers has no windows in this family")
        every = keys.count("full_attention_interval")
        kinds = keys.each_layer("layer_types", n_layers, [FULL, LINEAR])
        return kinds or [LINEAR if (index + 1) % every else FULL for index in range(n_layers)]

    def read_biases(self, keys):
        keys.only("attention_bias", False, "an output gate of a recipe has no biases")
        return {}

    def read_attention(self, keys, d_model):
        return super().read_attention(keys, d_model) | {"output_gate": "channel"}

    def read_rope(self, keys, max_seq_len):
        fraction = keys.number("partial_rotary_factor")
        return super().read_rope(keys, max_seq_len) | ({} if fraction == 1 else {"rope_fraction": fraction})

    def read_block(self, keys, attention, kind, index):
        if kind == FULL:
            return super().read_block(keys, attention, kind, index)
        return {
            "kind": "gated_deltanet",
            "n_heads": keys.count("linear_num_value_heads"),
            "n_key_heads": keys.count("linear_num_key_heads"),
            "head_dim": keys.count("linear_key_head_dim"),
            "v_head_dim": keys.count("linear_value_head_dim"),
            "conv_size": keys.count("linear_conv_kernel_dim"),
            "norm_eps": keys.number("rms_norm_eps"),
        }

    def read_experts(self, keys, normalise):
        shared = {"n_shared": 1, "shared_gate": True}
        width = keys.count("shared_expert_intermediate_size")
        if width != keys.count(self.width_key):
            shared["shared_d_ff"] = width
        return super().read_experts(keys, normalise) | shared

    def write_head_dim(self, model, projection):
        return {"head_dim": projection.head_dim}

    def write_rope(self, layers):
        fraction = layers[0].mixer.attention.projection.rope_fraction
        return super().write_rope(layers) | {"partial_rotary_factor": fraction}

    def write_biases(self, layer):
        return {"attention_bias": False}

    def write_layer_types(self, layers):
        written = {"layer_types": [FULL if layer.mixer.attention else LINEAR for layer in layers]}
        state = next((layer.mixer for layer in layers if layer.mixer.attention is None), None)
        if state is None:
            return written
        return written | {
            "linear_num_value_heads": state.n_heads,
            "linear_num_key_heads": state.n_key_heads,
            "linear_key_head_dim": state.head_dim,
            "linear_value_head_dim": state.v_head_dim,
            "linear_conv_kernel_dim": state.conv_size,
        }

    def write_experts(self, ffn):
        return super().write_experts(ffn) | {"shared_expert_intermediate_size": ffn.shared_width}

    def as_stored(self, model, names):
        full = next((name for name, block in model.blocks.items() if block.kind == "full"), None)
        if full is None or not any(name.startswith(MODULE) for name in names):
            return model
        section = model.model_dump(mode="json") | {"multi_token": {"block": full}}
        return type(model).model_validate(section)

    def rules(self, model):
        yield from super().rules(model)
        for index, layer in enumerate(model.multi_token_layers()):
            ours, theirs = f"multi_token.{index}.", MODULE
            for one, other in MODULE_NORMS.items():
                yield Rule.same(f"{ours}{one}.weight", f"{theirs}{other}.weight", self.norm_form)
            yield Rule.same(f"{ours}input.weight", f"{theirs}fc.weight")
            yield from self.layer_rules(layer, f"{ours}layer.", f"{theirs}layers.{index}.")

    def attention_rules(self, layer, ours, theirs):
        point = layer.mixer.attention
        if point is None:
            yield from self._state_rules(layer.mixer, ours, theirs.removesuffix("self_attn.") + "linear_attn.")
            return
        projection = point.projection
        rows = projection.n_kv_heads * projection.head_dim
        queries = Theirs(
            f"{theirs}q_proj.weight", 2 * projection.n_heads * projection.head_dim, QueryAndGate(projection.n_heads)
        )
        keys = tuple(Theirs(f"{theirs}{name}_proj.weight", rows) for name in "kv")
        yield Rule((f"{ours}output_gate.weight", f"{ours}projection.input.weight"), (queries, *keys))
        yield Rule.same(f"{ours}projection.query_norm.weight", f"{theirs}q_norm.weight", self.norm_form)
        yield Rule.same(f"{ours}projection.key_norms.0.weight", f"{theirs}k_norm.weight", self.norm_form)
        yield Rule.same(f"{ours}output.weight", f"{theirs}o_proj.weight")

    def _state_rules(self, config, ours, theirs):
        heads, shared = config.n_key_heads, config.n_heads // config.n_key_heads
        keys, values = config.head_dim, shared * config.v_head_dim
        wide = ByHead(heads, (keys, keys, values, values))
        narrow = ByHead(heads, (shared, shared))
        rows = heads * (2 * keys + 2 * values)
        both = (
            Theirs(f"{theirs}in_proj_qkvz.weight", rows, wide),
            Theirs(f"{theirs}in_proj_ba.weight", 2 * config.n_heads, narrow),
        )
        yield Rule((f"{ours}input.weight",), both)
        channels = heads * (2 * keys + values)
        taps = Theirs(f"{theirs}conv1d.weight", form=Taps(), shape=(channels, 1, config.conv_size))
        yield Rule((f"{ours}conv_weight",), (taps,))
        yield Rule.same(f"{ours}decay_log_rate", f"{theirs}A_log")
        yield Rule.same(f"{ours}decay_bias", f"{theirs}dt_bias")
        yield Rule.same(f"{ours}norm.weight", f"{theirs}norm.weight")
        yield Rule.same(f"{ours}output.weight", f"{theirs}out_proj.weight")

    def ffn_rules(self, layer, ours, theirs):
        yield from super().ffn_rules(layer, ours, theirs)
        if layer.ffn.kind == "moe":
            for one, other in FFN_NAMES.items():
                yield Rule.same(f"{ours}shared.{one}.weight", f"{theirs}shared_expert.{other}.weight")
            yield Rule.same(f"{ours}shared_gate.weight", f"{theirs}shared_expert_gate.weight")


FAMILY = Qwen3Next()
