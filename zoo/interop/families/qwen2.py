"""Qwen 2 and 2.5 (Alibaba): biases on queries, keys and values."""

from zoo.interop.llama_like import DEFAULTS, SlidingLayers


class Qwen2(SlidingLayers):
    """As Llama, with biases on three of the four maps of attention."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    bias_keys = ()
    defaults = DEFAULTS | {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "sliding_window": 4096,
    }

    def read_biases(self, keys):
        return super().read_biases(keys) | {"qkv_bias": True}


FAMILY = Qwen2()
