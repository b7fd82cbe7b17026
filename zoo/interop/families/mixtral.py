"""Mixtral 8x7B and 8x22B (Mistral): Mistral with experts in every layer."""

from zoo.interop.experts import WithExperts
from zoo.interop.llama_like import DEFAULTS, FULL, SLIDING


class Mixtral(WithExperts):
    """The weights of a token's experts always add up to 1."""

    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    bias_keys = ()
    experts_key = "num_local_experts"
    width_key = "intermediate_size"
    place = "block_sparse_moe."
    expert_names = {"gate": "w1", "up": "w3", "down": "w2"}
    defaults = DEFAULTS | {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "sliding_window": None,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "router_aux_loss_coef": 0.001,
    }

    def read_layer_types(self, keys, n_layers):
        return [FULL if keys.value("sliding_window") is None else SLIDING] * n_layers

    def read_ffns(self, keys, n_layers):
        keys.only("router_jitter_noise", 0, "a recipe adds no noise to what the router reads")
        return {"ffn": self.read_experts(keys, normalise=True)}

    def write_ffns(self, layers):
        return self.write_experts(layers[0].ffn)

    def write_layer_types(self, layers):
        pattern = layers[0].mixer.attention.pattern("window")
        return {"sliding_window": None if pattern is None else pattern.window}


FAMILY = Mixtral()
