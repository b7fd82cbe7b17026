"""Command R (Cohere): attention and feed-forward in parallel after one LayerNorm, interleaved rotary, scaled logits."""

from zoo.interop.family import Interleaved
from zoo.interop.llama_like import DEFAULTS, LlamaLike

COHERE = {key: value for key, value in DEFAULTS.items() if key != "rms_norm_eps"} | {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
}


class Cohere(LlamaLike):
    """Models with norms of queries and keys (Command R+) are refused: theirs take off the mean."""

    model_type = "cohere"
    architecture = "CohereForCausalLM"
    defaults = COHERE
    norms = {"attention_norm": "input_layernorm"}
    eps_key = "layer_norm_eps"

    def read_attention(self, keys, d_model):
        keys.only("use_qk_norm", False, "the norms of queries and keys of a recipe do not take off the mean")
        return super().read_attention(keys, d_model)

    def read_around(self, keys):
        return {"norm": "layer", "parallel": True, "logit_scale": keys.number("logit_scale")}

    def query_form(self, projection):
        return Interleaved(projection.head_dim, projection.head_dim)

    def write_around(self, model):
        return {"logit_scale": model.logit_scale, "use_qk_norm": False}


FAMILY = Cohere()
