"""Mixtures of experts of Llama's layout: a router and a gated network for each expert.  No torch."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from zoo.interop.family import Form, Rule, Theirs, concatenated
from zoo.interop.keys import Keys
from zoo.interop.llama_like import LlamaLike
from zoo.interop.spelling import spell


@dataclass(frozen=True)
class GateUp(Form):
    """The gate and up maps of all experts in one tensor [E, C, 2F], or their biases [E, 2F]; ours has all gates first.

    interleaved: whether column 2i is of the gate and 2i + 1 of the other map; else the gate's columns come first.
    """

    n_experts: int
    bias: bool = False
    interleaved: bool = True

    def to_ours(self, tensor):
        rows = tensor if self.bias else tensor.transpose(1, 2)
        gate, up = (rows[:, ::2], rows[:, 1::2]) if self.interleaved else rows.chunk(2, 1)
        return concatenated([gate, up] if self.bias else [gate.flatten(0, 1), up.flatten(0, 1)], 0)

    def to_theirs(self, tensor):
        gate, up = tensor.unflatten(0, (2, self.n_experts, *([] if self.bias else [-1])))
        if self.interleaved:
            rows = concatenated([gate.unsqueeze(2), up.unsqueeze(2)], 2).flatten(1, 2)
        else:
            rows = concatenated([gate, up], 1)
        return rows if self.bias else rows.transpose(1, 2)


@dataclass(frozen=True)
class ByColumns(Form):
    """A map of each expert, [E, inputs, outputs]; ours has the outputs as rows, those of all experts in turn."""

    n_experts: int

    def to_ours(self, tensor):
        return tensor.transpose(1, 2).flatten(0, 1)

    def to_theirs(self, tensor):
        return tensor.unflatten(0, (self.n_experts, -1)).transpose(1, 2)


class WithExperts(LlamaLike):
    """A subclass states the names of its keys and tensors.

    experts_key, active_key, width_key: of the number of experts, of those of a token, of their width.
    place: of router and experts in a layer.
    expert_names: the maps of an expert, ours and theirs.
    """

    experts_key: ClassVar[str] = "num_experts"
    active_key: ClassVar[str] = "num_experts_per_tok"
    width_key: ClassVar[str] = "moe_intermediate_size"
    place: ClassVar[str] = "mlp."
    expert_names: ClassVar[dict[str, str]] = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}

    @property
    def ffn_kinds(self) -> set[str]:
        return {"moe"}

    def read_experts(self, keys: Keys, normalise: bool) -> dict[str, Any]:
        """The feed-forward `moe`."""
        if keys.value("hidden_act") not in ("silu", "swish"):
            keys.refuse("hidden_act", "must be silu, because experts of a recipe are SwiGLU networks")
        keys.value("output_router_logits", None)  # only what a training returns
        return {
            "kind": "moe",
            "n_experts": keys.count(self.experts_key),
            "n_active": keys.count(self.active_key),
            "d_ff": keys.count(self.width_key),
            "normalise": normalise,
            "balance_loss": keys.number("router_aux_loss_coef"),
        }

    def write_experts(self, ffn: Any) -> dict[str, Any]:
        """The keys of config.json about experts."""
        return {
            "hidden_act": "silu",
            self.experts_key: ffn.n_experts,
            self.active_key: ffn.n_active,
            self.width_key: ffn.d_ff,
            "router_aux_loss_coef": ffn.balance_loss,
        }

    def ffn_rules(self, layer, ours: str, theirs: str) -> Iterator[Rule]:
        if layer.ffn.kind != "moe":
            yield from super().ffn_rules(layer, ours, theirs)
            return
        theirs = theirs.removesuffix("mlp.") + self.place
        yield Rule.same(f"{ours}router.weight", f"{theirs}gate.weight")
        for one, other in self.expert_names.items():
            rows = layer.d_model if one == "down" else layer.ffn.d_ff
            names = (f"{theirs}experts.{index}.{other}.weight" for index in range(layer.ffn.n_experts))
            yield Rule((f"{ours}{one}",), tuple(Theirs(name, rows) for name in names))


class SomeExperts(WithExperts):
    """Experts in some layers, a dense feed-forward in the others.  A subclass says which layers are dense."""

    @property
    def ffn_kinds(self) -> set[str]:
        return {"moe", "swiglu"}

    def mixed(self, keys: Keys, dense: list[bool], experts: dict[str, Any]) -> dict[str, Any]:
        """The keys `ffn`, or `ffns` and `ffn_layers`, of layers that are dense or have these experts."""
        kinds = ["dense" if is_dense else "moe" for is_dense in dense]
        ffns = {"dense": self.read_ffn(keys), "moe": experts}
        used = {name: ffn for name, ffn in ffns.items() if name in kinds}
        return {"ffn": ffns[kinds[0]]} if len(used) == 1 else {"ffns": used, "ffn_layers": spell(kinds)}

    def write_ffns(self, layers) -> dict[str, Any]:
        dense = [layer for layer in layers if layer.ffn.kind != "moe"]
        experts = next((layer.ffn for layer in layers if layer.ffn.kind == "moe"), None)
        written = self.write_dense([layer.index for layer in dense])
        if dense:
            written["intermediate_size"] = dense[0].ffn.d_ff
        return written if experts is None else written | self.write_experts(experts)

    @abstractmethod
    def write_dense(self, dense: list[int]) -> dict[str, Any]:
        """The keys that say which layers are dense.  dense: their indices."""
