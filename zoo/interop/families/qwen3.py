"""Qwen 3 (Alibaba), the dense models: an RMSNorm on each query and key head before the rotation."""

from zoo.interop.families.qwen2 import Qwen2
from zoo.interop.llama_like import SlidingLayers


class Qwen3(SlidingLayers):
    """As Llama, with QK-norm per head."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    defaults = Qwen2.defaults | {"head_dim": 128}

    def read_attention(self, keys, d_model):
        return super().read_attention(keys, d_model) | {"qk_norm": True, "norm_eps": keys.number("rms_norm_eps")}


FAMILY = Qwen3()
