"""What Gemma 2 and 3 share: scaled embeddings, norms on both sides whose scales are kept less one, GeGLU.  No torch."""

from typing import Any, ClassVar

from zoo.interop.family import Form, OneLess
from zoo.interop.keys import Keys
from zoo.interop.llama_like import DEFAULTS, GELUS, PeriodicWindows

GEMMA = DEFAULTS | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}


class GemmaLike(PeriodicWindows):
    """A subclass states `sliding_window_pattern` among its defaults."""

    activation_key: ClassVar[str] = "hidden_activation"
    activations: ClassVar[dict[str, Any]] = GELUS
    norm_form: ClassVar[Form] = OneLess()
    norms: ClassVar[dict[str, str]] = {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_post_norm": "post_feedforward_layernorm",
    }

    def read_layer_types(self, keys: Keys, n_layers: int) -> list[str]:
        keys.repeats("sliding_window_size", "sliding_window")
        return super().read_layer_types(keys, n_layers)

    def read_ffn(self, keys: Keys) -> dict[str, Any]:
        keys.repeats("hidden_act", "hidden_activation")
        return super().read_ffn(keys)

    def read_attention(self, keys: Keys, d_model: int) -> dict[str, Any]:
        divisor = keys.number("query_pre_attn_scalar")
        if divisor <= 0:
            keys.refuse("query_pre_attn_scalar", "must be above 0")
        return super().read_attention(keys, d_model) | {"score_scale": divisor**-0.5}

    def read_around(self, keys: Keys) -> dict[str, Any]:
        cap = keys.value("final_logit_softcapping")
        around = {"norm_place": "both", "embedding_scale": keys.count("hidden_size") ** 0.5}
        return around if cap is None else around | {"logit_softcap": keys.number("final_logit_softcapping")}

    def write_around(self, model) -> dict[str, Any]:
        scale = model.expanded()[0].mixer.attention.projection.scale
        divisor = round(scale**-2)
        if divisor < 1 or divisor**-0.5 != scale:
            divisor = scale**-2
        return {
            "query_pre_attn_scalar": divisor,
            "final_logit_softcapping": model.logit_softcap,
        }
