"""Gemma 3 (Google), the text models: five windows to one full layer, each with a rotary base of its own."""

from zoo.interop.gemma import GEMMA, GemmaLike
from zoo.interop.llama_like import FULL, SLIDING
from zoo.interop.rope import read_rope, write_rope


class Gemma3(GemmaLike):
    """Norms before and after each part, QK-norm per head; windows rotate by `rope_local_base_freq`, never scaled."""

    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    defaults = GEMMA | {
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    }

    def read_attention(self, keys, d_model):
        keys.only("use_bidirectional_attention", False, "a recipe is causal")
        keys.only("attn_logit_softcapping", None, "transformers does not cap the scores of this family")
        normed = {"qk_norm": True, "norm_eps": keys.number("rms_norm_eps")}
        return super().read_attention(keys, d_model) | normed

    def read_rope(self, keys, max_seq_len):
        return read_rope(keys, max_seq_len, FULL)

    def read_block(self, keys, attention, kind, index):
        local = keys.number("rope_local_base_freq")
        if kind == SLIDING:
            attention = {key: value for key, value in attention.items() if key != "rope_scaling"}
            attention |= read_rope(keys, 1, SLIDING, theta=local)
        return super().read_block(keys, attention, kind, index)

    def write_rope(self, layers):
        bases = (write_rope(p)["rope_theta"] for p in self.projections(layers, "window"))
        local = next(bases, self.defaults["rope_local_base_freq"])
        return super().write_rope(layers) | {"rope_local_base_freq": local}

    def write_around(self, model):
        return super().write_around(model) | {"attn_logit_softcapping": None}


FAMILY = Gemma3()
