"""Phi 3 and 4 (Microsoft): one matrix for queries, keys and values, one for the two maps of the feed-forward."""

from zoo.interop.family import Rule, Theirs
from zoo.interop.llama_like import DEFAULTS, OneWindow


class Phi3(OneWindow):
    """Long-context models, whose rotation is scaled by `longrope`, are refused."""

    model_type = "phi3"
    architecture = "Phi3ForCausalLM"
    own_code = True
    bias_keys = ()
    defaults = DEFAULTS | {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 1.0,
        "sliding_window": None,
    }

    def read_layer_types(self, keys, n_layers):
        keys.value("original_max_position_embeddings", None)  # of longrope alone
        return super().read_layer_types(keys, n_layers)

    def read_rope(self, keys, max_seq_len):
        if (keys.mapping("rope_scaling") or {}).get("type") == "yarn":
            keys.refuse(
                "rope_scaling", "must not be of type yarn, which transformers takes for longrope in this family"
            )
        fraction = keys.number("partial_rotary_factor")
        partial = {} if fraction == 1 else {"rope_fraction": fraction}
        return super().read_rope(keys, max_seq_len) | partial

    def write_rope(self, layers):
        fraction = layers[0].mixer.attention.projection.rope_fraction
        return super().write_rope(layers) | {"partial_rotary_factor": fraction}

    def attention_rules(self, layer, ours, theirs):
        yield Rule.same(f"{ours}projection.input.weight", f"{theirs}qkv_proj.weight")
        yield Rule.same(f"{ours}output.weight", f"{theirs}o_proj.weight")

    def ffn_rules(self, layer, ours, theirs):
        both = (f"{ours}gate.weight", f"{ours}up.weight")
        yield Rule(both, (Theirs(f"{theirs}gate_up_proj.weight"),))
        yield Rule.same(f"{ours}output.weight", f"{theirs}down_proj.weight")


FAMILY = Phi3()
