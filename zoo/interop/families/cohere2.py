"""Command R7B and Command A (Cohere): Command R with three rotated windows to one full layer without rotation."""

from zoo.interop.families.cohere import COHERE, Cohere
from zoo.interop.llama_like import FULL, SLIDING


class Cohere2(Cohere):
    """`layer_types`, else every fourth layer is full; full layers have no position embedding (NoPE)."""

    model_type = "cohere2"
    architecture = "Cohere2ForCausalLM"
    defaults = COHERE | {"sliding_window": 4096, "sliding_window_pattern": 4}

    def read_layer_types(self, keys, n_layers):
        keys.value("sliding_window")
        every = keys.count("sliding_window_pattern")
        kinds = keys.each_layer("layer_types", n_layers, [FULL, SLIDING])
        return kinds or [FULL if (index + 1) % every == 0 else SLIDING for index in range(n_layers)]

    def read_block(self, keys, attention, kind, index):
        if kind == FULL:
            attention = {key: value for key, value in attention.items() if not key.startswith("rope")}
            attention["rope"] = False
        return super().read_block(keys, attention, kind, index)

    def write_layer_types(self, layers):
        windows = [layer.mixer.attention.pattern("window") for layer in layers]
        window = next((pattern.window for pattern in windows if pattern is not None), self.defaults["sliding_window"])
        return {"layer_types": [FULL if p is None else SLIDING for p in windows], "sliding_window": window}

    def write_around(self, model):
        return {"logit_scale": model.logit_scale}


FAMILY = Cohere2()
