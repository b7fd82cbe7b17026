"""Gemma 2 (Google): windows and full layers in turn; logits are capped. Models with capped scores are refused."""

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


FAMILY = Gemma2()
