"""Decoders of Llama's layout: pre-norm layers of grouped-query attention and a gated feed-forward.  No torch.

A family of this layout states what differs: defaults of its config class, the fields of its blocks, names of tensors.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from zoo.interop.errors import InteropError
from zoo.interop.family import SAME, Family, Form, Rule, Theirs
from zoo.interop.keys import Keys
from zoo.interop.rope import read_rope, write_rope
from zoo.interop.spelling import name_blocks
from zoo.recipe.schedule import MAX_LAYERS

FULL, SLIDING = "full_attention", "sliding_attention"
ACTIVATIONS = {"silu": {"kind": "swiglu"}, "swish": {"kind": "swiglu"}}
GELUS = {
    "gelu": {"kind": "geglu", "gelu": "exact"},
    "gelu_pytorch_tanh": {"kind": "geglu", "gelu": "tanh"},
    "gelu_new": {"kind": "geglu", "gelu": "tanh"},
}
FFN_NAMES = {"gate": "gate_proj", "up": "up_proj", "output": "down_proj"}  # ours, theirs
DEFAULTS = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "num_key_value_heads": None,
    "head_dim": None,
}


class LlamaLike(Family):
    """What the families of this layout share; each overrides the methods for what it has of its own."""

    defaults: ClassVar[dict[str, Any]] = DEFAULTS
    norms: ClassVar[dict[str, str]] = {  # of a layer: ours, and theirs
        "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
    }
    eps_key: ClassVar[str] = "rms_norm_eps"
    length_key: ClassVar[str] = "max_position_embeddings"
    activation_key: ClassVar[str] = "hidden_act"
    activations: ClassVar[dict[str, Any]] = ACTIVATIONS | GELUS
    bias_keys: ClassVar[tuple[str, ...]] = ("attention_bias",)  # that the config class has; also mlp_bias
    norm_form: ClassVar[Form] = SAME
    other_kinds: ClassVar[tuple[str, ...]] = ()  # of blocks, in addition to grouped-query attention

    # config.json to recipe

    def read(self, keys: Keys) -> dict[str, Any]:
        d_model = keys.count("hidden_size")
        n_layers = keys.count("num_hidden_layers", most=MAX_LAYERS)
        max_seq_len = keys.count(self.length_key)
        kinds = self.read_layer_types(keys, n_layers)
        attention = self.read_attention(keys, d_model) | self.read_rope(keys, max_seq_len)
        blocks = [self.read_block(keys, attention, kind, index) for index, kind in enumerate(kinds)]
        return {
            "d_model": d_model,
            "vocab_size": keys.count("vocab_size"),
            "max_seq_len": max_seq_len,
            **self.read_ffns(keys, n_layers),
            "tie_embeddings": keys.flag("tie_word_embeddings"),
            "norm_eps": keys.number(self.eps_key),
            **self.read_around(keys),
            **_init_std(keys),
            **name_blocks(blocks),
        }

    def read_layer_types(self, keys: Keys, n_layers: int) -> list[str]:
        """Of each layer, FULL or SLIDING."""
        return [FULL] * n_layers

    def read_attention(self, keys: Keys, d_model: int) -> dict[str, Any]:
        """The fields that all blocks have."""
        n_heads = keys.count("num_attention_heads")
        return {
            "n_heads": n_heads,
            "n_kv_heads": keys.count("num_key_value_heads", null=n_heads),
            "head_dim": keys.count("head_dim", null=max(1, d_model // n_heads)),
            **self.read_biases(keys),
        }

    def read_biases(self, keys: Keys) -> dict[str, Any]:
        """`attention_bias` is one on all four maps."""
        if "attention_bias" not in self.bias_keys:
            keys.only("attention_bias", False, f"{self.model_type} has no such biases")
            return {}
        return {"qkv_bias": True, "output_bias": True} if keys.flag("attention_bias", False) else {}

    def read_rope(self, keys: Keys, max_seq_len: int) -> dict[str, Any]:
        """The fields of blocks about rotation."""
        return read_rope(keys, max_seq_len)

    def read_block(self, keys: Keys, attention: dict[str, Any], kind: str, index: int) -> dict[str, Any]:
        """The block of a layer."""
        if kind == FULL:
            return {"kind": "full", **attention}
        return {"kind": "window", **attention, "window": keys.count("sliding_window")}

    def read_ffns(self, keys: Keys, n_layers: int) -> dict[str, Any]:
        """The key `ffn`, or `ffns` and `ffn_layers`."""
        return {"ffn": self.read_ffn(keys)}

    def read_ffn(self, keys: Keys) -> dict[str, Any]:
        """A dense feed-forward."""
        name = keys.value(self.activation_key)
        if not isinstance(name, str) or name not in self.activations:
            keys.refuse(self.activation_key, f"must be {', '.join(self.activations)}, which a recipe can say")
        if "mlp_bias" not in self.bias_keys:
            keys.only("mlp_bias", False, f"{self.model_type} has no such biases")
        bias = {"bias": True} if keys.flag("mlp_bias", False) else {}
        return {**self.activations[name], "d_ff": keys.count("intermediate_size"), **bias}

    def read_around(self, keys: Keys) -> dict[str, Any]:
        """Keys of the `model` section about norms, the residual stream and logits."""
        return {}

    # recipe to config.json

    def write(self, model) -> dict[str, Any]:
        layers = model.expanded()
        for layer in layers:
            self.check_block(layer)
        attending = [layer for layer in layers if layer.mixer.attention is not None]
        if not attending:
            raise InteropError(
                f"{self.model_type}: a model of it has a layer of attention; found {layers[0].kind} only"
            )
        projection = attending[0].mixer.attention.projection
        written = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": model.vocab_size,
            "hidden_size": model.d_model,
            "num_hidden_layers": len(layers),
            "num_attention_heads": projection.n_heads,
            "num_key_value_heads": projection.n_kv_heads,
            **self.write_head_dim(model, projection),
            self.length_key: model.max_seq_len,
            "initializer_range": model.init_std,
            self.eps_key: model.norm_eps,
            "tie_word_embeddings": model.tie_embeddings,
            "attention_dropout": 0.0,
            **self.write_ffns(layers),
            **self.write_rope(attending),
            **self.write_biases(attending[0]),
            **self.write_layer_types(layers),
            **self.write_around(model),
        }
        return written

    def check_block(self, layer) -> None:
        """Raise InteropError unless the layer is of this layout: grouped-query attention, full or over a window."""
        point = layer.mixer.attention
        if layer.kind in self.other_kinds:
            self.check_ffn(layer)
            return
        where = f"layer {layer.index} ({layer.block})"
        if point is None or point.projection.kind != "gqa":
            found = layer.kind if point is None else point.projection.kind.upper()
            only = " or ".join(("grouped-query attention", *self.other_kinds)) + (" only" * (not self.other_kinds))
            raise InteropError(f"{where}: {self.model_type} has {only}; found {found}")
        kinds = [pattern.kind for pattern in point.patterns]
        if kinds not in (["full"], ["window"]):
            raise InteropError(f"{where}: {self.model_type} has no such pattern: {', '.join(kinds)}")
        self.check_ffn(layer)

    def check_ffn(self, layer) -> None:
        """Raise InteropError unless the family has such a feed-forward."""
        where = f"layer {layer.index} ({layer.block})"
        if layer.ffn.kind not in self.ffn_kinds:
            expected = " or ".join(sorted(self.ffn_kinds))
            raise InteropError(f"{where}: {self.model_type} has a feed-forward {expected}; found {layer.ffn.kind}")

    @property
    def ffn_kinds(self) -> set[str]:
        """Kinds of feed-forward that the family has."""
        return {one["kind"] for one in self.activations.values()}

    def write_ffns(self, layers) -> dict[str, Any]:
        """The keys of config.json about feed-forwards."""
        ffn = layers[0].ffn
        return {"intermediate_size": ffn.d_ff, self.activation_key: self.write_activation(ffn)}

    def write_head_dim(self, model, projection) -> dict[str, Any]:
        """Left out where it is what every reader takes, because older ones do not know the key."""
        plain = self.defaults["head_dim"] is None and projection.head_dim == model.d_model // projection.n_heads
        return {} if plain else {"head_dim": projection.head_dim}

    def write_activation(self, ffn) -> str:
        """The name of the feed-forward's activation; the first that the family knows if it has none of that kind."""
        wanted = ffn.model_dump(mode="json")
        found = (name for name, says in self.activations.items() if says.items() <= wanted.items())
        return next(found, next(iter(self.activations)))

    def write_rope(self, layers) -> dict[str, Any]:
        """That of the first full layer that rotates, else of the first layer that does."""
        every = [*self.projections(layers, "full"), *self.projections(layers, "window")]
        return write_rope(next((one for one in every if one.position.rotates), every[0]))

    @staticmethod
    def projections(layers, pattern: str) -> list[Any]:
        """The projections of the layers that have the pattern."""
        return [layer.mixer.attention.projection for layer in layers if layer.mixer.attention.pattern(pattern)]

    def write_biases(self, layer) -> dict[str, Any]:
        """Those of `bias_keys`, from one layer."""
        written = {"attention_bias": layer.mixer.attention.output_bias, "mlp_bias": getattr(layer.ffn, "bias", False)}
        return {key: written[key] for key in self.bias_keys}

    def write_layer_types(self, layers) -> dict[str, Any]:
        """The keys about windows, and which layers have one."""
        return {}

    def write_around(self, model) -> dict[str, Any]:
        """The keys about norms, the residual stream and logits."""
        return {}

    # tensors

    def rules(self, model) -> Iterator[Rule]:
        yield Rule.same("embedding.weight", "model.embed_tokens.weight")
        for layer in model.expanded():
            yield from self.layer_rules(layer, f"layers.{layer.index}.", f"model.layers.{layer.index}.")
        yield Rule.same("norm.weight", "model.norm.weight", self.norm_form)
        if not model.tie_embeddings:
            yield Rule.same("head.weight", "lm_head.weight")

    def layer_rules(self, layer, ours: str, theirs: str) -> Iterator[Rule]:
        """The rules of a layer.  ours, theirs: what the names of its tensors begin with."""
        for one, other in self.norms.items():
            yield Rule.same(f"{ours}{one}.weight", f"{theirs}{other}.weight", self.norm_form)
        yield from self.attention_rules(layer, f"{ours}attention.", f"{theirs}self_attn.")
        yield from self.ffn_rules(layer, f"{ours}feed_forward.", f"{theirs}mlp.")

    def query_form(self, projection) -> Form:
        """The order of rows of queries and keys in theirs."""
        return SAME

    def attention_rules(self, layer, ours: str, theirs: str) -> Iterator[Rule]:
        """The rules of a layer's attention.  ours, theirs: what the names of its tensors begin with."""
        point = layer.mixer.attention
        projection = point.projection
        rows = [projection.n_heads * projection.head_dim, projection.n_kv_heads * projection.head_dim]
        rows.append(projection.n_kv_heads * projection.v_head_dim)
        forms = [self.query_form(projection)] * 2 + [SAME]
        for part in ("weight", "bias") if projection.qkv_bias else ("weight",):
            parts = zip("qkv", rows, forms, strict=True)
            each = tuple(Theirs(f"{theirs}{name}_proj.{part}", size, form) for name, size, form in parts)
            yield Rule((f"{ours}projection.input.{part}",), each)
        if projection.qk_norm and projection.qk_norm_scale:
            yield Rule.same(f"{ours}projection.query_norm.weight", f"{theirs}q_norm.weight", self.norm_form)
            yield Rule.same(f"{ours}projection.key_norms.0.weight", f"{theirs}k_norm.weight", self.norm_form)
        yield Rule.same(f"{ours}output.weight", f"{theirs}o_proj.weight")
        if point.output_bias:
            yield Rule.same(f"{ours}output.bias", f"{theirs}o_proj.bias")

    def ffn_rules(self, layer, ours: str, theirs: str) -> Iterator[Rule]:
        """The rules of a layer's feed-forward; arguments as of `attention_rules`."""
        for part in ("weight", "bias") if layer.ffn.bias else ("weight",):
            for one, other in FFN_NAMES.items():
                yield Rule.same(f"{ours}{one}.{part}", f"{theirs}{other}.{part}")


def _init_std(keys: Keys) -> dict[str, float]:
    """Only new parts of the model are drawn with it, so a value that a recipe refuses becomes the default."""
    value = keys.value("initializer_range")
    return {"init_std": value} if isinstance(value, float) and 0 < value <= 1 else {}


class SlidingLayers(LlamaLike):
    """With a sliding window in some layers, as Qwen 2 states them: `layer_types`, else from `max_window_layers` on."""

    def read_layer_types(self, keys: Keys, n_layers: int) -> list[str]:
        first = keys.count("max_window_layers", least=0)
        return read_windows(keys, [index >= first for index in range(n_layers)])

    def write_layer_types(self, layers) -> dict[str, Any]:
        return write_windows(layers) | {"max_window_layers": len(layers)}


class OneWindow(LlamaLike):
    """With one sliding window in every layer, or in none: `sliding_window` is a number, or null."""

    def read_layer_types(self, keys: Keys, n_layers: int) -> list[str]:
        return [FULL if keys.value("sliding_window") is None else SLIDING] * n_layers

    def write_layer_types(self, layers) -> dict[str, Any]:
        pattern = layers[0].mixer.attention.pattern("window")
        return {"sliding_window": None if pattern is None else pattern.window}


class PeriodicWindows(LlamaLike):
    """With a sliding window in the layers that `layer_types` names; without it, in all but every n-th layer."""

    def read_layer_types(self, keys: Keys, n_layers: int) -> list[str]:
        keys.value("sliding_window")  # may be written where no layer slides
        every = self.read_period(keys)
        kinds = keys.each_layer("layer_types", n_layers, [FULL, SLIDING])
        return kinds or [FULL if (index + 1) % every == 0 else SLIDING for index in range(n_layers)]

    def read_period(self, keys: Keys) -> int:
        """n, where every n-th layer is full."""
        return keys.count("sliding_window_pattern")

    def write_layer_types(self, layers) -> dict[str, Any]:
        windows = [layer.mixer.attention.pattern("window") for layer in layers]
        window = next((pattern.window for pattern in windows if pattern is not None), self.defaults["sliding_window"])
        kinds = [FULL if pattern is None else SLIDING for pattern in windows]
        return {"layer_types": kinds, "sliding_window": window}


def read_windows(keys: Keys, otherwise: list[bool]) -> list[str]:
    """Of each layer, FULL or SLIDING, as `layer_types` says.

    otherwise: of each layer, whether it slides where `layer_types` is absent and windows are switched on.
    """
    switched, window = keys.flag("use_sliding_window", False), keys.value("sliding_window")
    slides = switched and window is not None
    kinds = keys.each_layer("layer_types", len(otherwise), [FULL, SLIDING])
    if kinds is None:
        return [SLIDING if slides and one else FULL for one in otherwise]
    if SLIDING in kinds and not slides:
        why = "must be true, and sliding_window a number, because layer_types names sliding_attention"
        keys.refuse("use_sliding_window", why)
    return kinds


def write_windows(layers) -> dict[str, Any]:
    """`layer_types`, `use_sliding_window` and the window of the first layer that has one."""
    windows = [layer.mixer.attention.pattern("window") for layer in layers]
    first = next((pattern.window for pattern in windows if pattern is not None), None)
    return {
        "use_sliding_window": first is not None,
        "sliding_window": first,
        "layer_types": [FULL if pattern is None else SLIDING for pattern in windows],
    }
