"""Qwen 3 (Alibaba), the mixtures of experts: experts in every layer, or in those that the config counts."""

from zoo.interop.experts import SomeExperts
from zoo.interop.families.qwen3 import Qwen3
from zoo.interop.llama_like import FULL, SLIDING


class Qwen3Moe(SomeExperts, Qwen3):
    """Qwen 3 with experts; a window, if there is one, in every layer."""

    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    defaults = Qwen3.defaults | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "head_dim": None,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
        "norm_topk_prob": False,
        "router_aux_loss_coef": 0.001,
    }

    def read_layer_types(self, keys, n_layers):
        keys.value("max_window_layers", None)  # is not read by transformers for this family
        slides = keys.flag("use_sliding_window", False) and keys.value("sliding_window") is not None
        keys.value("sliding_window")
        return [SLIDING if slides else FULL] * n_layers

    def read_ffns(self, keys, n_layers):
        every = keys.count("decoder_sparse_step")
        dense = keys.value("mlp_only_layers", None) or []
        if not isinstance(dense, list) or not all(type(index) is int for index in dense):
            keys.refuse("mlp_only_layers", "must be a list of layers, counted from 0")
        is_dense = [index in dense or (index + 1) % every != 0 for index in range(n_layers)]
        return self.mixed(keys, is_dense, self.read_experts(keys, keys.flag("norm_topk_prob")))

    def write_layer_types(self, layers):
        pattern = layers[0].mixer.attention.pattern("window")
        return {"use_sliding_window": pattern is not None, "sliding_window": pattern and pattern.window}

    def write_dense(self, dense):
        return {"mlp_only_layers": dense, "decoder_sparse_step": 1}

    def write_experts(self, ffn):
        return super().write_experts(ffn) | {"norm_topk_prob": ffn.normalise}


FAMILY = Qwen3Moe()
