"""Gemma 2 (Google): windows and full layers in turn; scores and logits are capped."""

from zoo.interop.gemma import GEMMA, GemmaLike


class Gemma2(GemmaLike):
    """Norms before and after each part."""

    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    defaults = GEMMA | {
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "sliding_window_pattern": 2,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    }

    def read_attention(self, keys, d_model):
        attention, name = super().read_attention(keys, d_model), "attn_logit_softcapping"
        return attention if keys.value(name) is None else attention | {"score_softcap": keys.number(name)}

    def write_around(self, model):
        cap = model.expanded()[0].mixer.attention.projection.score_softcap
        return super().write_around(model) | {"attn_logit_softcapping": cap}


FAMILY = Gemma2()
