"""Mixtures of experts of Llama's layout: a router and a gated network for each expert.  No torch."""

from collections.abc import Iterator
from typing import Any, ClassVar

from zoo.interop.family import Rule, Theirs
from zoo.interop.keys import Keys
from zoo.interop.llama_like import LlamaLike


class WithExperts(LlamaLike):
    """A subclass states the names of its keys and tensors.  router: of the router's map, experts: of an expert's."""

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
