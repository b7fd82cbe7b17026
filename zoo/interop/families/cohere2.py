"""Command R7B and Command A (Cohere): Command R with three rotated windows to one full layer without rotation."""

from zoo.interop.families.cohere import COHERE, Cohere
from zoo.interop.llama_like import FULL, PeriodicWindows
from zoo.interop.rope import unrotated

# Keys of the published configs that transformers does not read: each states what its code does.
STATED = {
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1,
    "use_gated_activation": True,
    "use_parallel_block": True,
}


class Cohere2(PeriodicWindows, Cohere):
    """`layer_types`, else every fourth layer is full; full layers have no position embedding (NoPE)."""

    model_type = "cohere2"
    architecture = "Cohere2ForCausalLM"
    defaults = COHERE | {"sliding_window": 4096, "sliding_window_pattern": 4}

    def read_block(self, keys, attention, kind, index):
        if kind == FULL:
            attention = unrotated(attention)
        return super().read_block(keys, attention, kind, index)

    def read_around(self, keys):
        for name, value in STATED.items():
            keys.only(name, value, "transformers knows no other")
        keys.repeats("layer_switch", "sliding_window_pattern")
        keys.repeats("use_embedding_sharing", "tie_word_embeddings")
        return super().read_around(keys)

    def write_around(self, model):
        return {"logit_scale": model.logit_scale}


FAMILY = Cohere2()
