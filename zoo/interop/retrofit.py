"""One layer's attention as another block: each part takes over what it can, and notes say what it could not.

The same projection keeps its weights. Grouped-query attention becomes latent attention (zoo/interop/latents.py). Where
the old layer had no gates between patterns, new ones open one branch first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel

from zoo.interop.errors import InteropError
from zoo.interop.latents import OldMaps, to_latent
from zoo.interop.rope import rope_facts
from zoo.recipe.differences import in_words

FIRST = (
    "window",
    "full",
    "chunked",
    "dilated",
    "selection",
    "compression",
)  # the branch that new gates open, the first there is
SMALL_SINK = -4.0  # the logit of a new sink: it takes little, and still learns
OPEN = 4.0  # logit of an open gate; -OPEN: closed. Both can still learn: the sigmoid has slope 0.018 there
SAME_FIELDS = ("head_dim", "v_head_dim", "qk_norm")
MADE = ("projection.", "output.", "gate.", "output_gate.")  # parameters that have rules of their own
NORM_FIELDS = ("qk_norm_over", "qk_norm_place", "qk_norm_scale")
State = dict[str, torch.Tensor]


@dataclass
class Retrofitted:
    """The attention's parameters, float64, and notes on what differs from the old layer."""

    state: State
    notes: list[str] = field(default_factory=list)


def retrofit(
    old: Any, new: Any, state: Mapping[str, torch.Tensor], fresh: State, moment_CC: torch.Tensor
) -> Retrofitted:
    """The parameters of the attention `new` (zoo.blocks.resolved.ResolvedMixer) from those of `old`.

    state: of the old attention.  fresh: of the new one as it is drawn, for parameters that the old one lacks.
    moment_CC: second moment of the attention's inputs.
    Raises InteropError, naming the field, if the new block cannot take over the old weights.
    """
    shapes = {name: tensor.shape for name, tensor in fresh.items()}
    if old == new or (_of_one_kind(old, new) and {n: t.shape for n, t in state.items()} == shapes):
        return Retrofitted({name: tensor.double() for name, tensor in state.items()})
    source, target = old.attention, new.attention
    if source is None or target is None:
        which = "old" if source is None else "new"
        raise InteropError(f"the {which} block is not a projection with patterns, so only an equal block can follow")
    if source.follows or target.follows:
        which = "old" if source.follows else "new"
        raise InteropError(f"share_kv: the {which} layer has no keys of its own, so only an equal block can follow")
    made = Retrofitted({name: tensor.double() for name, tensor in fresh.items()})
    state = {name: tensor.double() for name, tensor in state.items()}
    if source.projection.kind == "gqa" and target.projection.kind == "gqa":
        _grouped(source, target, state, made)
    elif source.projection.kind == "gqa":
        _latent(source, target, state, made, moment_CC)
    else:
        _copied(source, target, state, made)
    _scores(source, target, state, made)
    _patterns(state, made)
    _gates(source, target, state, made)
    _output_gate(source, target, state, made)
    if target.output_bias:
        made.state["output.bias"] = state.get("output.bias", torch.zeros_like(made.state["output.bias"]))
    elif "output.bias" in state:
        raise InteropError("output_bias: must be true, because the old layer has the bias; found false")
    return made


def _of_one_kind(old: Any, new: Any) -> bool:
    """Whether both are blocks of one kind that is no projection with patterns."""
    kinds = [getattr(mixer.settings, "kind", None) for mixer in (old, new)]
    return old.attention is None and kinds[0] is not None and kinds[0] == kinds[1]


def _sets(
    source: Any, state: Mapping[str, torch.Tensor], part: str
) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
    """Queries [H, D, ...], and for each pattern its keys [K, D, ...] and values [K, V, ...], of weights or biases."""
    p = source.projection
    rows = [p.n_kv_heads * p.head_dim, p.n_kv_heads * p.v_head_dim] * source.n_kv_sets
    query, *others = state[f"projection.input.{part}"].split([p.n_heads * p.head_dim, *rows])
    heads = [one.unflatten(0, (p.n_kv_heads, -1)) for one in others]
    kinds = [pattern.kind for pattern in source.patterns]
    pairs = [list(pair) for pair in zip(heads[::2], heads[1::2], strict=True)]
    return query.unflatten(0, (p.n_heads, -1)), dict(zip(kinds, pairs * (len(kinds) // len(pairs)), strict=True))


def _chosen(source: Any, target: Any, sets: dict[str, list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """The old keys and values of each set of the target: those of the same pattern, else of the first there is."""
    kinds = [pattern.kind for pattern in target.patterns]
    order = kinds if target.separate_kv else [next((kind for kind in kinds if kind in sets), kinds[0])]
    return [sets[kind] if kind in sets else next(iter(sets.values())) for kind in order]


def _grouped(source: Any, target: Any, state: Mapping[str, torch.Tensor], made: Retrofitted) -> None:
    """Grouped-query attention that stays so: perhaps with other groups, other patterns or several sets of keys."""
    one, other = source.projection, target.projection
    _check_grouped(one, other)
    ratio = one.scale / other.scale
    if ratio != 1 and other.qk_norm:
        raise InteropError(f"score_scale: must be {one.scale:g}, because qk_norm fixes the size of queries")
    for part in ("weight", "bias"):
        name = f"projection.input.{part}"
        if name not in made.state:
            continue
        if name not in state:
            made.state[name] = torch.zeros_like(made.state[name])
            continue
        query, sets = _sets(source, state, part)
        chosen = [regrouped(x, other.n_kv_heads) for pair in _chosen(source, target, sets) for x in pair]
        made.state[name] = torch.cat([(query * ratio).flatten(0, 1), *(x.flatten(0, 1) for x in chosen)])
    for name in made.state:
        if name.startswith("projection.query_norm"):
            made.state[name] = state[name]
        elif name.startswith("projection.key_norms"):
            made.state[name] = state["projection.key_norms.0.weight"]
    made.state["output.weight"] = state["output.weight"]
    was, now = _about_positions(one), _about_positions(other)
    for name in [*was, *(name for name in now if name not in was)]:
        if was.get(name) != now.get(name):
            made.notes.append(_changed(name, was.get(name), now.get(name)))
    if one.n_kv_heads > other.n_kv_heads:
        made.notes.append(f"{one.n_kv_heads} key/value heads became the means of {other.n_kv_heads} groups")


def _about_positions(projection: Any) -> dict[str, Any]:
    """What a projection says about positions, by field."""
    names = ("rope_fraction", "position_temperature")
    return rope_facts(projection.position) | {name: getattr(projection, name) for name in names}


def _check_grouped(one: Any, other: Any) -> None:
    for name in ("n_heads", *SAME_FIELDS, *(NORM_FIELDS if one.qk_norm else ())):
        was, now = getattr(one, name), getattr(other, name)
        if was != now:
            raise InteropError(_must_stay(name, was, now))
    if one.qkv_bias and not other.qkv_bias:
        raise InteropError("qkv_bias: must be true, because the old layer has the biases; found false")
    fewer, more = sorted((one.n_kv_heads, other.n_kv_heads))
    if more % fewer:
        raise InteropError(f"n_kv_heads: must divide {one.n_kv_heads} or be a multiple; found {other.n_kv_heads}")
    if fewer != more and one.qk_norm and one.qk_norm_over == "width":
        raise InteropError(f"n_kv_heads: must be {one.n_kv_heads}, because qk_norm is over all heads")


def _must_stay(name: str, was: Any, now: Any) -> str:
    was, now = in_words(was, now)
    return f"{name}: must be {was}, as before; found {now}"


def _changed(name: str, was: Any, now: Any) -> str:
    was, now = in_words(*(x.model_dump(mode="json") if isinstance(x, BaseModel) else x for x in (was, now)))
    return f"{name} was {was}, and is {now}"


def regrouped(x: torch.Tensor, n_groups: int) -> torch.Tensor:
    """Keys or values [K, ...] of other groups: copies where there are more, means where there are fewer."""
    if n_groups >= len(x):
        return x.repeat_interleave(n_groups // len(x), 0)
    return x.unflatten(0, (n_groups, -1)).mean(1)


def _latent(
    source: Any, target: Any, state: Mapping[str, torch.Tensor], made: Retrofitted, moment_CC: torch.Tensor
) -> None:
    """Grouped-query attention that becomes latent."""
    bias = state.get("projection.input.bias")
    if bias is not None and bool(bias.any()):
        raise InteropError(f"qkv_bias: {target.projection.kind} has no biases that could take over the old layer's")
    query, sets = _sets(source, state, "weight")
    ((key, value),) = _chosen(source, target, sets)
    output_CHV = state["output.weight"].unflatten(1, (source.projection.n_heads, -1))
    made.state |= to_latent(OldMaps(query, key, value, output_CHV), source.projection, target.projection, moment_CC)
    if target.projection.latent_norm:
        made.notes.append("latent_norm: the norm of the latent is new; its scales are the mean sizes of the latents")


def _copied(source: Any, target: Any, state: Mapping[str, torch.Tensor], made: Retrofitted) -> None:
    """A latent projection keeps its weights if it is the same."""
    one, other = source.projection, target.projection
    if one != other:
        names = [n for n in vars(one) if getattr(one, n) != getattr(other, n, None)] if type(one) is type(other) else []
        found = f"{one.kind} to {other.kind}" if not names else ", ".join(names)
        raise InteropError(f"projection: a latent projection must stay as it is; {found} differs")
    made.state |= {name: tensor for name, tensor in state.items() if name.startswith(("projection.", "output.weight"))}


def _scores(source: Any, target: Any, state: Mapping[str, torch.Tensor], made: Retrofitted) -> None:
    """Sinks are kept, and new ones begin small; a cap that differs is noted."""
    one, other = source.projection, target.projection
    if other.sinks and one.sinks:
        made.state["projection.sinks"] = state["projection.sinks"]
    elif other.sinks:
        made.state["projection.sinks"] = torch.full_like(made.state["projection.sinks"], SMALL_SINK)
        made.notes.append(f"sinks: new, with logits of {SMALL_SINK:g}")
    elif one.sinks:
        made.notes.append("sinks: left out")
    if one.score_softcap != other.score_softcap:
        made.notes.append(_changed("score_softcap", one.score_softcap, other.score_softcap))


def _patterns(state: Mapping[str, torch.Tensor], made: Retrofitted) -> None:
    """Keep other parameters, such as learned pooling, if the old layer has them by the same name and shape."""
    new = []
    for name, tensor in made.state.items():
        if not name.startswith(MADE):
            same = name in state and state[name].shape == tensor.shape
            made.state[name] = state[name] if same else tensor
            new += [] if same else [name]
    if new:
        made.notes.append(f"drawn anew: {', '.join(new)}")
    if left := [name for name in state if name not in made.state and not name.startswith(MADE)]:
        made.notes.append(f"left out: {', '.join(left)}")


def _gates(source: Any, target: Any, state: Mapping[str, torch.Tensor], made: Retrofitted) -> None:
    """Gates between patterns: kept for patterns that had one; new ones open one branch and close the others."""
    kinds, before = ([pattern.kind for pattern in point.patterns] for point in (target, source))
    if "gate.weight" not in made.state:
        if len(before) > 1:
            left = ", ".join(kind for kind in before if kind not in kinds)
            made.notes.append(f"without the gate of {kinds[0]}, and without {left}")
        return
    H = target.projection.n_heads
    weight_HPC = torch.zeros_like(made.state["gate.weight"]).unflatten(0, (H, -1))
    bias_HP = weight_HPC.new_full((H, len(kinds)), -OPEN)
    if len(before) > 1 and set(before) & set(kinds):
        old_HPC = state["gate.weight"].unflatten(0, (H, -1))
        old_HP = state.get("gate.bias", old_HPC.new_zeros(H * len(before))).unflatten(0, (H, -1))
        for place, kind in enumerate(kinds):
            if kind in before:
                weight_HPC[:, place], bias_HP[:, place] = old_HPC[:, before.index(kind)], old_HP[:, before.index(kind)]
    else:
        opened = next((kind for kind in FIRST if kind in kinds), kinds[0])
        bias_HP[:, kinds.index(opened)] = OPEN
        # The open branch alone is then what the old layer computed from those keys.
        share = torch.tensor(OPEN).double().sigmoid() if target.gate_bias else 0.5 * len(kinds)
        made.state["output.weight"] = made.state["output.weight"] / share
        if target.gate_bias:
            made.notes.append(f"new gates open {opened}, and close {', '.join(k for k in kinds if k != opened)}")
        else:
            made.notes.append(f"gate_bias: false: new gates open {', '.join(kinds)} alike")
    if before[1:] and not target.gate_bias and set(kinds) - set(before):
        made.notes.append(f"gate_bias: false: half open at first: {', '.join(k for k in kinds if k not in before)}")
    made.state["gate.weight"] = weight_HPC.flatten(0, 1)
    if target.gate_bias:
        made.state["gate.bias"] = bias_HP.flatten()


def _output_gate(source: Any, target: Any, state: Mapping[str, torch.Tensor], made: Retrofitted) -> None:
    """A new gate on the output is half open at first, and the output map twice as large."""
    if source.output_gate == target.output_gate:
        if target.output_gate:
            made.state["output_gate.weight"] = state["output_gate.weight"]
        return
    if source.output_gate is not None:
        raise InteropError(_must_stay("output_gate", source.output_gate, target.output_gate))
    made.state["output_gate.weight"] = torch.zeros_like(made.state["output_gate.weight"])
    made.state["output.weight"] = made.state["output.weight"] * 2
