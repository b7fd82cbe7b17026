"""OLMo 3 (Ai2): OLMo 2 with three windows to one full layer; only full layers scale their rotation."""

from zoo.interop.families.olmo2 import OLMO, Olmo2
from zoo.interop.llama_like import FULL, SLIDING, PeriodicWindows
from zoo.interop.rope import read_rope


class Olmo3(PeriodicWindows, Olmo2):
    """`layer_types`, else every fourth layer is full."""

    model_type = "olmo3"
    architecture = "Olmo3ForCausalLM"
    defaults = OLMO | {"sliding_window": 4096}

    def read_period(self, keys):
        return 4

    def read_rope(self, keys, max_seq_len):
        return read_rope(keys, max_seq_len, FULL)

    def read_block(self, keys, attention, kind, index):
        if kind == SLIDING:
            attention = {key: value for key, value in attention.items() if key != "rope_scaling"}
        return super().read_block(keys, attention, kind, index)


FAMILY = Olmo3()
