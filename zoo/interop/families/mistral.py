"""Mistral 7B and its successors: one sliding window in every layer, or none."""

from zoo.interop.llama_like import DEFAULTS, OneWindow


class Mistral(OneWindow):
    """`sliding_window` holds for all layers; null is full attention."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    bias_keys = ()
    defaults = DEFAULTS | {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    }


FAMILY = Mistral()
