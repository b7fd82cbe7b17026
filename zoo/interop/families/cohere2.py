"""Command R7B and Command A (Cohere): Command R with three rotated windows to one full layer without rotation."""

from zoo.interop.families.cohere import COHERE, Cohere
from zoo.interop.llama_like import FULL, PeriodicWindows
from zoo.interop.rope import unrotated


class Cohere2(PeriodicWindows, Cohere):
    """`layer_types`, else every fourth layer is full; full layers have no position embedding (NoPE)."""

    model_type = "cohere2"
    architecture = "Cohere2ForCausalLM"
    defaults = COHERE | {"sliding_window": 4096, "sliding_window_pattern": 4}

    def read_block(self, keys, attention, kind, index):
        if kind == FULL:
            attention = unrotated(attention)
        return super().read_block(keys, attention, kind, index)

    def write_around(self, model):
        return {"logit_scale": model.logit_scale}


FAMILY = Cohere2()
