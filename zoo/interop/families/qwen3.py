"""Qwen 3 (Alibaba), the dense models: an RMSNorm on each query and key head before the rotation."""

from zoo.interop.llama_like import DEFAULTS, SlidingLayers


class Qwen3(SlidingLayers):
    """As Llama, with QK-norm per head."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    defaults = DEFAULTS | {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "sliding_window": 4096,
    }

    def read_attention(self, keys, d_model):
        return super().read_attention(keys, d_model) | {"qk_norm": True, "norm_eps": keys.number("rms_norm_eps")}


FAMILY = Qwen3()
