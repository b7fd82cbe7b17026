"""MiniMax-01 (MiniMax): lightning attention and full layers, post-norm with a scaled residual stream, experts."""

from zoo.interop.experts import WithExperts
from zoo.interop.families.mixtral import Mixtral
from zoo.interop.family import ByHead, Rule, Theirs
from zoo.interop.llama_like import FULL, SLIDING

LINEAR = "linear_attention"
LINEAR_EPS = 1e-6  # of the norm of lightning attention, whatever rms_norm_eps says
DECAYS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
ALPHAS, BETAS = (
    tuple(f"{part}_{name}_factor" for part in ("full_attn", "linear_attn", "mlp")) for name in ("alpha", "beta")
)


class MiniMax(Mixtral):
    """`layer_types`, else every second layer is full, from the first on.

    transformers (4.57) rotates whole heads. The published config has `rotary_dim`, which it ignores; here it counts.
    """

    model_type = "minimax"
    architecture = "MiniMaxForCausalLM"
    other_kinds = ("lightning",)
    defaults = Mixtral.defaults | {
        "router_aux_loss_coef": 0.001,
        "rotary_dim": None,
        **dict.fromkeys(ALPHAS + BETAS, 1),
    }

    def read_layer_types(self, keys, n_layers):
        keys.value("sliding_window")  # may be written where no layer slides
        keys.value("block_size", None)  # of the computation
        kinds = keys.each_layer("layer_types", n_layers, [FULL, LINEAR])
        return kinds or [LINEAR if index % 2 else FULL for index in range(n_layers)]

    def read_rope(self, keys, max_seq_len):
        rope = super().read_rope(keys, max_seq_len)
        width = keys.count("head_dim", null=max(1, keys.count("hidden_size") // keys.count("num_attention_heads")))
        rotated = keys.count("rotary_dim", null=width, most=width)
        return rope if rotated == width else rope | {"rope_fraction": rotated / width}

    def read_block(self, keys, attention, kind, index):
        if kind == LINEAR:
            sizes = {"n_heads": attention["n_heads"], "head_dim": attention["head_dim"]}
            return {"kind": "lightning", **sizes, "v_head_dim": sizes["head_dim"], "norm_eps": LINEAR_EPS}
        return super().read_block(keys, attention, FULL if keys.value("sliding_window") is None else SLIDING, index)

    def read_ffns(self, keys, n_layers):
        keys.only("shared_intermediate_size", 0, "the shared expert of MiniMax's own code is not read")
        keys.value("shared_moe_mode", None)  # of that shared expert
        return super().read_ffns(keys, n_layers)

    def read_around(self, keys):
        keys.only("postnorm", True, "transformers knows no other")
        alpha, beta = (self._one_factor(keys, names) for names in (ALPHAS, BETAS))
        return {"norm_place": "stream", "stream_scale": alpha, "residual_scale": beta}

    def _one_factor(self, keys, names):
        values = [keys.number(name) for name in names]
        for name, value in zip(names, values, strict=True):
            if value != values[0]:
                keys.refuse(name, f"must be that of {names[0]}, because a recipe has one for all parts")
        return values[0]

    def write_layer_types(self, layers):
        windows = [layer.mixer.attention.pattern("window") for layer in layers if layer.mixer.attention]
        window = next((pattern.window for pattern in windows if pattern), None)
        kinds = [FULL if layer.mixer.attention else LINEAR for layer in layers]
        return {"layer_types": kinds, "sliding_window": window}

    def write_rope(self, layers):
        projection = layers[0].mixer.attention.projection
        fraction, width = projection.rope_fraction, projection.head_dim
        return super().write_rope(layers) | ({} if fraction == 1 else {"rotary_dim": round(fraction * width)})

    def write_head_dim(self, model, projection):
        return {"head_dim": projection.head_dim}

    def write_around(self, model):
        alphas, betas = dict.fromkeys(ALPHAS, model.stream_scale), dict.fromkeys(BETAS, model.residual_scale)
        return alphas | betas

    def attention_rules(self, layer, ours, theirs):
        if layer.mixer.attention is not None:
            yield from WithExperts.attention_rules(self, layer, ours, theirs)
            return
        config = layer.mixer
        width, heads = config.head_dim, config.n_heads
        both = (
            Theirs(f"{theirs}qkv_proj.weight", 3 * heads * width, ByHead(heads, (width,) * 3)),
            Theirs(f"{theirs}output_gate.weight", heads * width),
        )
        yield Rule((f"{ours}input.weight",), both)
        yield Rule.same(f"{ours}norm.weight", f"{theirs}norm.weight")
        yield Rule.same(f"{ours}output.weight", f"{theirs}out_proj.weight")

    def derived(self, name):
        return name.endswith(DECAYS) or super().derived(name)


FAMILY = MiniMax()
