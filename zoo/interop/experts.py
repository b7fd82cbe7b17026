"""Mixtures of experts of Llama's layout: a router and a gated network for each expert.  No torch."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from zoo.interop.family import Rule, Theirs
from zoo.interop.keys import Keys
from zoo.interop.llama_like import LlamaLike
from zoo.interop.spelling import spell


class WithExperts(LlamaLike):
    """A subclass states the names of its keys and tensors.

    experts_key, width_key: of the number of experts, and of their width.  place: of router and experts in a layer.
    expert_names: the maps of an expert, ours and theirs.
    """

    experts_key: ClassVar[str] = "num_experts"
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
            "n_active": keys.count("num_experts_per_tok"),
            "d_ff": keys.count(self.width_key),
            "normalise": normalise,
            "balance_loss": keys.number("router_aux_loss_coef"),
        }

    def write_experts(self, ffn: Any) -> dict[str, Any]:
        """The keys of config.json about experts."""
        return {
            "hidden_act": "silu",
            self.experts_key: ffn.n_experts,
            "num_experts_per_tok": ffn.n_active,
            self.width_key: ffn.d_ff,
            "router_aux_loss_coef": ffn.balance_loss,
        }

    def ffn_rules(self, layer, ours: str, theirs: str) -> Iterator[Rule]:
        if layer.ffn.kind != "moe":
            yield from super().ffn_rules(layer, ours, theirs)
            return
        theirs = f"model.layers.{layer.index}.{self.place}"
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
