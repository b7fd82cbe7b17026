"""gpt-oss (OpenAI): attention sinks, windows and full layers in turn, experts with biases and clamped products.

The published weights are quantised (mxfp4), and refused: transformers writes them in bfloat16 first.
"""

from zoo.interop.experts import ByColumns, GateUp, WithExperts
from zoo.interop.family import Rule, Theirs
from zoo.interop.llama_like import DEFAULTS, PeriodicWindows

CLAMP = 7.0  # of hidden values: transformers has it in its code
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


class GptOss(PeriodicWindows, WithExperts):
    """`layer_types`, else every second layer is full. The softmax of the chosen logits is the normalised one of all."""

    model_type = "gpt_oss"
    architecture = "GptOssForCausalLM"
    experts_key = "num_local_experts"
    width_key = "intermediate_size"
    defaults = DEFAULTS | {
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "rope_theta": 150_000.0,
        "rope_scaling": YARN,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "router_aux_loss_coef": 0.9,
    }

    def read_period(self, keys):
        return 2

    def read_biases(self, keys):
        keys.only("attention_bias", True, "gpt-oss has biases on all maps of attention")
        return {"qkv_bias": True, "output_bias": True}

    def read_attention(self, keys, d_model):
        return super().read_attention(keys, d_model) | {"sinks": True}

    def read_ffns(self, keys, n_layers):
        keys.only("swiglu_limit", CLAMP, "transformers knows no other")
        keys.repeats("experts_per_token", "num_experts_per_tok")
        keys.value("initial_context_length", None)  # stated once more in rope_scaling
        experts = self.read_experts(keys, normalise=True)
        return {"ffn": experts | {"expert_bias": True, "router_bias": True, "clamp": CLAMP}}

    def write_ffns(self, layers):
        return self.write_experts(layers[0].ffn)

    def write_head_dim(self, model, projection):
        return {"head_dim": projection.head_dim}

    def attention_rules(self, layer, ours, theirs):
        yield from super().attention_rules(layer, ours, theirs)
        yield Rule.same(f"{ours}projection.sinks", f"{theirs}sinks")

    def ffn_rules(self, layer, ours, theirs):
        experts, width, d_model = layer.ffn.n_experts, layer.ffn.d_ff, layer.d_model
        for part in ("weight", "bias"):
            yield Rule.same(f"{ours}router.{part}", f"{theirs}router.{part}")
        matrices = Theirs(f"{theirs}experts.gate_up_proj", form=GateUp(experts), shape=(experts, d_model, 2 * width))
        biases = Theirs(
            f"{theirs}experts.gate_up_proj_bias", form=GateUp(experts, bias=True), shape=(experts, 2 * width)
        )
        yield Rule((f"{ours}gate", f"{ours}up"), (matrices,))
        yield Rule((f"{ours}gate_bias", f"{ours}up_bias"), (biases,))
        down = Theirs(f"{theirs}experts.down_proj", form=ByColumns(experts), shape=(experts, width, d_model))
        yield Rule((f"{ours}down",), (down,))
        yield Rule.same(f"{ours}down_bias", f"{theirs}experts.down_proj_bias")


FAMILY = GptOss()
