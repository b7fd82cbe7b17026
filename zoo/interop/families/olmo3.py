"""OLMo 3 (Ai2): OLMo 2 with three windows to one full layer; only full layers scale their rotation."""

from zoo.interop.families.olmo2 import OLMO, Olmo2
from zoo.interop.llama_like import FULL, SLIDING
from zoo.interop.rope import read_rope


class Olmo3(Olmo2):
    """`layer_types`, else every fourth layer is full."""

    model_type = "olmo3"
    architecture = "Olmo3ForCausalLM"
    defaults = OLMO | {"sliding_window": 4096}

    def read_layer_types(self, keys, n_layers):
        keys.value("sliding_window")
        kinds = keys.each_layer("layer_types", n_layers, [FULL, SLIDING])
        return kinds or [FULL if (index + 1) % 4 == 0 else SLIDING for index in range(n_layers)]

    def read_rope(self, keys, max_seq_len):
        return read_rope(keys, max_seq_len, FULL)

    def read_block(self, keys, attention, kind, index):
        if kind == SLIDING:
            attention = {key: value for key, value in attention.items() if key != "rope_scaling"}
        return super().read_block(keys, attention, kind, index)

    def write_layer_types(self, layers):
        windows = [layer.mixer.attention.pattern("window") for layer in layers]
        window = next((pattern.window for pattern in windows if pattern is not None), self.defaults["sliding_window"])
        return {"layer_types": [FULL if p is None else SLIDING for p in windows], "sliding_window": window}


FAMILY = Olmo3()
