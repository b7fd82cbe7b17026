"""The settings of a model that a strip of layers does not show: widths, heads, rotation, norms, scales. No torch."""

from collections.abc import Callable, Iterable
from typing import Any

from zoo.recipe import ModelConfig
from zoo.recipe.layer_fields import describe

NONE = "–"  # a layer that has no such setting, as a linear layer has no rope_theta


def settings(model: ModelConfig) -> dict[str, str]:
    """Name -> text; where layers differ, the values in the order of first use: `10,000 / 1,000,000`."""
    layers = model.expanded()
    points = [layer.mixer.attention for layer in layers]
    projections = [None if point is None else point.projection for point in points]
    found = {
        "layers": f"{len(layers):,}",
        "d_model": f"{model.d_model:,}",
        "vocab_size": f"{model.vocab_size:,}",
        "max_seq_len": f"{model.max_seq_len:,}",
        "feed-forward": _joined(layer.feed_forward.describe() for layer in layers),
        "around the layers": "; ".join(describe(model)) or NONE,
    }
    return found | {name: _joined(_text(read(p)) for p in projections) for name, read in _READ.items()}


def differing(columns: list[dict[str, Any]]) -> list[str]:
    """Names of the settings that the columns with numbers do not all share."""
    known = [column["settings"] for column in columns if "settings" in column]
    return [name for name in (known[0] if known else {}) if len({one[name] for one in known}) > 1]


def _qk_norm(projection: Any) -> str:
    if not getattr(projection, "qk_norm", False):
        return "no"
    over = ", over all heads" if projection.qk_norm_over == "width" else ""
    place = ", after rope" if projection.qk_norm_place == "after" else ""
    return f"yes{over}{place}"


def _rope_scaling(projection: Any) -> str:
    scaling = projection and getattr(projection.position, "scaling", None)
    return NONE if scaling is None else f"{scaling.rope_type} ×{scaling.factor:g}"


# Each reads a resolved projection, or None of a layer that has none.
_READ: dict[str, Callable[[Any], Any]] = {
    "query heads": lambda p: p and p.n_heads,
    "key/value heads": lambda p: p and p.n_kv_heads,
    "head_dim": lambda p: p and p.head_dim,
    "rope_theta": lambda p: p and p.position.shown,
    "rope_scaling": _rope_scaling,
    "qk_norm": _qk_norm,
    "score_softcap": lambda p: p and p.score_softcap,
    "sinks": lambda p: "yes" if p and p.sinks else "no",
}


def _text(value: Any) -> str:
    return NONE if value is None else value if isinstance(value, str) else f"{value:,.10g}"


def _joined(texts: Iterable[str]) -> str:
    """Each text once, in the order of first use; the mark of layers without the setting only if no layer has it."""
    found = list(dict.fromkeys(texts))
    return " / ".join([text for text in found if text != NONE] or found)
