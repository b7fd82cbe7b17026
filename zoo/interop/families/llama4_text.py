"""Llama 4 (Meta), the text models: chunks and full layers without rotation, norms after rotation, experts by input."""

from typing import Any

from zoo.interop.errors import InteropError
from zoo.interop.experts import ByColumns, GateUp, SomeExperts
from zoo.interop.family import Interleaved, Rule, Theirs
from zoo.interop.llama_like import DEFAULTS, FFN_NAMES, FULL, LlamaLike
from zoo.interop.rope import unrotated, write_rope

CHUNKED = "chunked_attention"


class Llama4(SomeExperts):
    """`no_rope_layers` has 1 for a layer that rotates; those that do not have a temperature by position.

    An expert reads its input times its weight; the other networks of a layer, one shared expert or a dense
    feed-forward, read the input itself.
    """

    model_type = "llama4_text"
    architecture = "Llama4ForCausalLM"
    experts_key = "num_local_experts"
    width_key = "intermediate_size"
    bias_keys = ()
    defaults = DEFAULTS | {
        "vocab_size": 202048,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "num_experts_per_tok": 1,
        "num_local_experts": 16,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "router_aux_loss_coef": 0.001,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    }

    def read_layer_types(self, keys, n_layers):
        keys.value("attention_chunk_size")  # may be written where no layer has chunks
        kinds = keys.each_layer("layer_types", n_layers, [FULL, CHUNKED])
        return kinds or [CHUNKED if rotates else FULL for rotates in self._rotates(keys, n_layers)]

    def _rotates(self, keys, n_layers: int) -> list[bool]:
        interval = keys.count("no_rope_layer_interval")
        listed = keys.value("no_rope_layers", None) or None  # an empty list is none
        listed = listed and keys.each_layer("no_rope_layers", n_layers, [0, 1])
        return [(i + 1) % interval != 0 for i in range(n_layers)] if listed is None else [one == 1 for one in listed]

    def read_block(self, keys, attention, kind, index):
        grows, every, scale = (keys.value(name) for name in ("attn_temperature_tuning", "floor_scale", "attn_scale"))
        normed = keys.flag("use_qk_norm")
        if not self._rotates(keys, keys.count("num_hidden_layers"))[index]:
            attention = unrotated(attention)
            if grows:  # true, or a number that transformers takes for true
                attention = attention | {"position_temperature": {"every": every, "scale": scale}}
        elif normed:
            after = {"qk_norm": True, "qk_norm_place": "after", "qk_norm_scale": False}
            attention = attention | after | {"norm_eps": keys.number("rms_norm_eps")}
        if kind == FULL:
            return {"kind": "full", **attention}
        return {"kind": "chunked", **attention, "chunk": keys.count("attention_chunk_size")}

    def read_ffn(self, keys):
        return super().read_ffn(keys) | {"d_ff": keys.count("intermediate_size_mlp")}

    def read_ffns(self, keys, n_layers):
        keys.only("router_jitter_noise", 0, "a recipe adds no noise to what the router reads")
        step, listed = keys.count("interleave_moe_layer_step"), keys.value("moe_layers", None)
        if listed is not None and not (isinstance(listed, list) and all(type(index) is int for index in listed)):
            keys.refuse("moe_layers", "must be a list of layers, counted from 0")
        moe = range(step - 1, n_layers, step) if listed is None else listed
        experts = self.read_experts(keys, normalise=False) | {"router": "sigmoid", "weigh": "input", "n_shared": 1}
        return self.mixed(keys, [index not in moe for index in range(n_layers)], experts)

    def check_block(self, layer):
        point = layer.mixer.attention
        where = f"layer {layer.index} ({layer.block})"
        kinds = [] if point is None else [pattern.kind for pattern in point.patterns]
        if point is None or point.projection.kind != "gqa" or kinds not in (["full"], ["chunked"]):
            found = layer.kind if point is None else point.describe()
            raise InteropError(
                f"{where}: {self.model_type} has grouped-query attention, full or chunked; found {found}"
            )
        if layer.ffn.kind not in self.ffn_kinds:
            raise InteropError(f"{where}: {self.model_type} has moe or swiglu; found {layer.ffn.kind}")

    def write_rope(self, layers):
        every = [*self.projections(layers, "chunked"), *self.projections(layers, "full")]
        return write_rope(next((one for one in every if one.position.rotates), every[0]))

    def write_layer_types(self, layers):
        chunks = [layer.mixer.attention.pattern("chunked") for layer in layers]
        chunk = next((pattern.chunk for pattern in chunks if pattern), self.defaults["attention_chunk_size"])
        return {
            "layer_types": [CHUNKED if pattern else FULL for pattern in chunks],
            "no_rope_layers": [int(layer.mixer.attention.projection.position.rotates) for layer in layers],
            "attention_chunk_size": chunk,
        }

    def write_around(self, model):
        projections = [layer.mixer.attention.projection for layer in model.expanded()]
        grown = next((p.position_temperature for p in projections if p.position_temperature), None)
        written: dict[str, Any] = {"use_qk_norm": any(p.qk_norm for p in projections)}
        written["attn_temperature_tuning"] = grown is not None
        return written | ({"floor_scale": grown.every, "attn_scale": grown.scale} if grown else {})

    def write_ffns(self, layers):
        dense = [layer.ffn for layer in layers if layer.ffn.kind != "moe"]
        experts = [layer.ffn for layer in layers if layer.ffn.kind == "moe"]
        written = {"moe_layers": [layer.index for layer in layers if layer.ffn.kind == "moe"]}
        written |= {"intermediate_size_mlp": dense[0].d_ff} if dense else {}
        return written | (self.write_experts(experts[0]) if experts else {})

    def write_dense(self, dense):
        return {}

    def write_head_dim(self, model, projection):
        return {"head_dim": projection.head_dim}

    def query_form(self, projection):
        return Interleaved(projection.head_dim, projection.head_dim)

    def ffn_rules(self, layer, ours, theirs):
        theirs = f"model.layers.{layer.index}.feed_forward."
        if layer.ffn.kind != "moe":
            yield from LlamaLike.ffn_rules(self, layer, ours, theirs)
            return
        experts, width, d_model = layer.ffn.n_experts, layer.ffn.d_ff, layer.d_model
        yield Rule.same(f"{ours}router.weight", f"{theirs}router.weight")
        both = GateUp(experts, interleaved=False)
        matrices = Theirs(f"{theirs}experts.gate_up_proj", form=both, shape=(experts, d_model, 2 * width))
        yield Rule((f"{ours}gate", f"{ours}up"), (matrices,))
        down = Theirs(f"{theirs}experts.down_proj", form=ByColumns(experts), shape=(experts, width, d_model))
        yield Rule((f"{ours}down",), (down,))
        for one, other in FFN_NAMES.items():
            yield Rule.same(f"{ours}shared.{one}.weight", f"{theirs}shared_expert.{other}.weight")


FAMILY = Llama4()
