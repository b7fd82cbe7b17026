"""Llama 2 and 3 (Meta), and the many models that are published in its layout."""

from zoo.interop.llama_like import DEFAULTS, LlamaLike


class Llama(LlamaLike):
    """Full attention everywhere; biases where the config asks for them."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    bias_keys = ("attention_bias", "mlp_bias")
    defaults = DEFAULTS | {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    }


FAMILY = Llama()
