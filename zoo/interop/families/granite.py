"""Granite 3 (IBM), the dense models: Llama with four multipliers."""

from zoo.interop.families.llama import Llama


class Granite(Llama):
    """Embeddings, scores, additions to the stream and logits are scaled; `logits_scaling` divides."""

    model_type = "granite"
    architecture = "GraniteForCausalLM"
    defaults = Llama.defaults | {
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
    }

    def read_attention(self, keys, d_model):
        return super().read_attention(keys, d_model) | {"score_scale": keys.number("attention_multiplier")}

    def read_around(self, keys):
        divisor = keys.number("logits_scaling")
        if divisor <= 0:
            keys.refuse("logits_scaling", "must be above 0")
        return {
            "embedding_scale": keys.number("embedding_multiplier"),
            "residual_scale": keys.number("residual_multiplier"),
            "logit_scale": 1 / divisor,
        }

    def write_around(self, model):
        divisor = 1 / model.logit_scale
        rounded = round(divisor, 9)
        return {
            "embedding_multiplier": model.embedding_scale,
            "residual_multiplier": model.residual_scale,
            "attention_multiplier": model.expanded()[0].mixer.attention.projection.scale,
            "logits_scaling": rounded if 1 / rounded == model.logit_scale else divisor,
        }


FAMILY = Granite()
