"""Mixtral 8x7B and 8x22B (Mistral): Mistral with experts in every layer."""

from zoo.interop.experts import WithExperts
from zoo.interop.families.mistral import Mistral


class Mixtral(WithExperts, Mistral):
    """The weights of a token's experts always add up to 1."""

    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    experts_key = "num_local_experts"
    width_key = "intermediate_size"
    place = "block_sparse_moe."
    expert_names = {"gate": "w1", "up": "w3", "down": "w2"}
    defaults = Mistral.defaults | {
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "sliding_window": None,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "router_aux_loss_coef": 0.001,
    }

    def read_ffns(self, keys, n_layers):
        keys.only("router_jitter_noise", 0, "a recipe adds no noise to what the router reads")
        return {"ffn": self.read_experts(keys, normalise=True)}

    def write_ffns(self, layers):
        return self.write_experts(layers[0].ffn)


FAMILY = Mixtral()
