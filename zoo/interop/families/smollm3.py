"""SmolLM3 (Hugging Face): no rotation in some layers (NoPE), which the config counts or lists."""

from zoo.interop.llama_like import DEFAULTS, LlamaLike, read_windows, write_windows
from zoo.interop.rope import unrotated


class SmolLM3(LlamaLike):
    """As Llama; `no_rope_layers` has 1 for a layer that rotates and 0 for one that does not."""

    model_type = "smollm3"
    architecture = "SmolLM3ForCausalLM"
    bias_keys = ("attention_bias", "mlp_bias")
    defaults = DEFAULTS | {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2_000_000.0,
        "no_rope_layer_interval": 4,
        "sliding_window": None,
        "tie_word_embeddings": True,
    }

    def read_layer_types(self, keys, n_layers):
        keys.value("max_window_layers", None)  # is not read by transformers for this family
        return read_windows(keys, [not rotates for rotates in self._rotates(keys, n_layers)])

    def _rotates(self, keys, n_layers):
        interval = keys.count("no_rope_layer_interval")
        listed = keys.each_layer("no_rope_layers", n_layers, [0, 1])
        return [(i + 1) % interval != 0 for i in range(n_layers)] if listed is None else [one == 1 for one in listed]

    def read_block(self, keys, attention, kind, index):
        if not self._rotates(keys, keys.count("num_hidden_layers"))[index]:
            attention = unrotated(attention)
        return super().read_block(keys, attention, kind, index)

    def write_layer_types(self, layers):
        rotates = [int(layer.mixer.attention.projection.position.rotates) for layer in layers]
        return write_windows(layers) | {"no_rope_layers": rotates}


FAMILY = SmolLM3()
