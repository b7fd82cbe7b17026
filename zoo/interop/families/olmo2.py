"""OLMo 2 (Ai2): norms after attention and feed-forward, QK-norm over all heads together."""

from zoo.interop.llama_like import DEFAULTS, LlamaLike

OLMO = DEFAULTS | {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


class Olmo2(LlamaLike):
    """As Llama, but for the norms."""

    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    defaults = OLMO
    norms = {
        "attention_post_norm": "post_attention_layernorm",
        "feed_forward_post_norm": "post_feedforward_layernorm",
    }

    def read_attention(self, keys, d_model):
        normed = {"qk_norm": True, "qk_norm_over": "width", "norm_eps": keys.number("rms_norm_eps")}
        return super().read_attention(keys, d_model) | normed

    def read_around(self, keys):
        return {"norm_place": "after"}


FAMILY = Olmo2()
