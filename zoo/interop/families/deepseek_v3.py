"""DeepSeek-V3 and R1: multi-head latent attention, and experts that a sigmoid router chooses within groups.

The modules that predict further tokens come with the published weights, and transformers leaves them out of what it
saves. Weights of 8 bits are refused.
"""

from zoo.interop.errors import InteropError
from zoo.interop.experts import SomeExperts
from zoo.interop.family import SAME, ByHead, Interleaved, Rule, Theirs
from zoo.interop.llama_like import DEFAULTS, FFN_NAMES

LATENT_EPS = 1e-6  # of the norms of latents, whatever rms_norm_eps says
BIAS_STEP = 0.001  # of the router's bias, as the report gives it; the config does not say
BIAS = "balance_bias"
DEPTH = "num_nextn_predict_layers"
MODULE_NAMES = {"embedding_norm": "enorm", "hidden_norm": "hnorm", "input": "eh_proj", "norm": "shared_head.norm"}


class DeepseekV3(SomeExperts):
    """Latent attention everywhere; the first layers are dense."""

    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    own_code = True
    experts_key = "n_routed_experts"
    multi_token = True
    defaults = DEFAULTS | {
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "n_shared_experts": 1,
        "n_routed_experts": 256,
        "routed_scaling_factor": 2.5,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "qk_nope_head_dim": 128,
        "n_group": 8,
        "topk_group": 4,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
        "max_position_embeddings": 4096,
        "rope_interleave": True,
        "router_aux_loss_coef": 0.0,
    }

    def read_around(self, keys):
        depth = keys.value(DEPTH, 0)
        if type(depth) is not int or not 0 <= depth <= 8:
            keys.refuse(DEPTH, "must be an integer of 0 to 8")
        return {"multi_token": {"depth": depth}} if depth else {}

    def write_around(self, model):
        return {DEPTH: model.multi_token.depth} if model.multi_token else {}

    def as_stored(self, model, names):
        first = f"model.layers.{len(model.expanded())}."
        has_modules = any(name.startswith(first) for name in names)
        return model if has_modules else model.model_copy(update={"multi_token": None})

    def read_attention(self, keys, d_model):
        n_heads = keys.count("num_attention_heads")
        keys.only("num_key_value_heads", n_heads, "every head has its own key and value")
        keys.only("attention_bias", False, "latent attention of a recipe has no biases")
        keys.only("rope_interleave", True, "only this order of rows is read")
        keys.value("head_dim", None)  # transformers states qk_rope_head_dim once more
        keys.value("qk_head_dim", None)
        fields = {
            "n_heads": n_heads,
            "head_dim": keys.count("qk_nope_head_dim"),
            "rope_dim": keys.count("qk_rope_head_dim"),
            "v_head_dim": keys.count("v_head_dim"),
            "kv_rank": keys.count("kv_lora_rank"),
            "norm_eps": LATENT_EPS,
        }
        return fields if keys.value("q_lora_rank") is None else fields | {"q_rank": keys.count("q_lora_rank")}

    def read_block(self, keys, attention, kind, index):
        return {"kind": "mla", **attention}

    def read_ffns(self, keys, n_layers):
        for name, value in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc"), ("moe_layer_freq", 1)):
            keys.only(name, value, "DeepSeek-V3 has no other")
        for name in ("aux_loss_alpha", "seq_aux", "ep_size"):  # of training
            keys.value(name, None)
        first = keys.count("first_k_dense_replace", least=0)
        experts = self.read_experts(keys, keys.flag("norm_topk_prob")) | {
            "router": "sigmoid",
            "route_scale": keys.number("routed_scaling_factor"),
            "n_shared": keys.count("n_shared_experts"),
            "n_groups": keys.count("n_group"),
            "groups_active": keys.count("topk_group"),
            "balance_rate": BIAS_STEP,
        }
        return self.mixed(keys, [index < first for index in range(n_layers)], experts)

    def check_block(self, layer):
        point = layer.mixer.attention
        found = layer.kind if point is None else point.describe()
        if point is None or point.projection.kind != "mla" or [p.kind for p in point.patterns] != ["full"]:
            where = f"layer {layer.index} ({layer.block})"
            raise InteropError(f"{where}: {self.model_type} has latent attention (mla) over all keys; found {found}")
        if layer.ffn.kind not in self.ffn_kinds:
            raise InteropError(f"layer {layer.index}: {self.model_type} has moe or swiglu; found {layer.ffn.kind}")

    def write_head_dim(self, model, projection):
        return {
            "qk_nope_head_dim": projection.head_dim,
            "qk_rope_head_dim": projection.rope_dim,
            "v_head_dim": projection.v_head_dim,
            "kv_lora_rank": projection.kv_rank,
            "q_lora_rank": projection.q_rank,
        }

    def write_dense(self, dense):
        return {"first_k_dense_replace": len(dense)}

    def write_experts(self, ffn):
        return super().write_experts(ffn) | {
            "norm_topk_prob": ffn.normalise,
            "routed_scaling_factor": ffn.route_scale,
            "n_shared_experts": ffn.n_shared,
            "n_group": ffn.n_groups,
            "topk_group": ffn.of_groups,
        }

    def write_rope(self, layers):
        return super().write_rope(layers) | {"rope_interleave": True}

    def rules(self, model):
        yield from super().rules(model)
        head = "embedding.weight" if model.tie_embeddings else "head.weight"
        for index, layer in enumerate(model.multi_token_layers()):
            ours, theirs = f"multi_token.{index}.", f"model.layers.{layer.index}."
            for one, other in MODULE_NAMES.items():
                yield Rule.same(f"{ours}{one}.weight", f"{theirs}{other}.weight")
            yield from self.layer_rules(layer, f"{ours}layer.", theirs)
            # Embedding and head once more, equal to those of the model.
            yield Rule.same("embedding.weight", f"{theirs}embed_tokens.weight")
            yield Rule.same(head, f"{theirs}shared_head.head.weight")

    def attention_rules(self, layer, ours, theirs):
        p = layer.mixer.attention.projection
        turned = Interleaved(p.qk_dim, p.rope_dim, p.head_dim)
        latent = Theirs(
            f"{theirs}kv_a_proj_with_mqa.weight",
            p.kv_rank + p.rope_dim,
            Interleaved(p.kv_rank + p.rope_dim, p.rope_dim, p.kv_rank),
        )
        if p.q_rank:
            first = Theirs(f"{theirs}q_a_proj.weight", p.q_rank, SAME)
            yield Rule.same(f"{ours}projection.query.weight", f"{theirs}q_b_proj.weight", turned)
            yield Rule.same(f"{ours}projection.query_norm.weight", f"{theirs}q_a_layernorm.weight")
        else:
            first = Theirs(f"{theirs}q_proj.weight", p.n_heads * p.qk_dim, turned)
        yield Rule((f"{ours}projection.input.weight",), (first, latent))
        yield Rule.same(f"{ours}projection.latent_norm.weight", f"{theirs}kv_a_layernorm.weight")
        ups = (f"{ours}projection.key_up.weight", f"{ours}projection.value_up.weight")
        by_head = ByHead(p.n_heads, (p.head_dim, p.v_head_dim))
        yield Rule(ups, (Theirs(f"{theirs}kv_b_proj.weight", form=by_head),))
        yield Rule.same(f"{ours}output.weight", f"{theirs}o_proj.weight")

    def ffn_rules(self, layer, ours, theirs):
        yield from super().ffn_rules(layer, ours, theirs)
        if layer.ffn.kind == "moe":
            yield Rule.same(f"{ours}{BIAS}", f"{theirs}gate.e_score_correction_bias")
            for one, other in FFN_NAMES.items():
                yield Rule.same(f"{ours}shared.{one}.weight", f"{theirs}shared_experts.{other}.weight")


FAMILY = DeepseekV3()
