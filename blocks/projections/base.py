"""What a projection says of itself without torch: head sizes, what is cached for a token, what it costs.

A projection is three classes: the config as a recipe writes it (`ProjectionConfig`), the same with every number known
(`ResolvedProjection`), and the module that runs (`blocks.interface.Projection`), named by `module`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from zoo.blocks.checked import Fact, Facts, Kinded
from zoo.blocks.fields import PositionTemperature
from zoo.blocks.positions.base import PositionConfig

if TYPE_CHECKING:
    from typing import Any


class ProjectionConfig(Kinded):
    """How queries, keys and values are made, as a recipe writes it: None where a field is derived."""

    shares_kv: ClassVar[str] = ""  # why patterns cannot have keys and values of their own; "" if they can

    def filled(self, d_model: int | None) -> "dict[str, Any]":
        """The fields that have a derived default, each with its value; None where d_model is needed and not known."""
        return {}

    def resolve(self, d_model: int, seq_len: int) -> "ResolvedProjection":
        """The same with every number known. seq_len: the longest row that the model is made for."""
        raise NotImplementedError(f"{type(self).__name__} does not define resolve")

    def facts(self, d_model: int, seq_len: int, part: str | None = None) -> Facts:
        """What a projection of another package is asked for."""
        yield Fact("resolve", lambda: self.resolve(d_model, seq_len), (ResolvedProjection,))
        yield Fact("resolve: module", lambda: self.resolve(d_model, seq_len).module, (str,))


@dataclass(frozen=True)
class ResolvedProjection(ABC):
    """A projection whose numbers are all known, and the facts that follow from them."""

    module: ClassVar[str]  # "package.module:Class" of the module that runs

    kind: str
    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    norm_eps: float
    position: PositionConfig
    position_temperature: PositionTemperature | None
    score_scale: float | None
    sinks: bool
    score_softcap: float | None

    @property
    @abstractmethod
    def qk_dim(self) -> int:
        """Width of a score: channels of a query and of a key."""

    @abstractmethod
    def entries(self) -> dict[str, tuple[int, ...]]:
        """Shape of what is cached for one token, by name."""

    @property
    def entry_elements(self) -> int:
        """Elements that are cached for one token."""
        return sum(prod(shape) for shape in self.entries().values())

    def key_entries(self) -> dict[str, tuple[int, ...]]:
        """The entries that keys are made of."""
        return self.entries()

    @property
    @abstractmethod
    def rotated_entry(self) -> str | None:
        """The entry that carries the rotary embedding; None if none does."""

    @property
    def scale(self) -> float:
        """What products of queries and keys are multiplied by."""
        return self.qk_dim**-0.5 if self.score_scale is None else self.score_scale

    @property
    def shared_key_dim(self) -> int:
        """Channels of a key that all heads share."""
        return 0

    @property
    def expanded_elements(self) -> int:
        """Elements of the keys and values made of one cached entry; 0 if the entry is a key and a value."""
        return 0

    @property
    def flops_per_pair(self) -> float:
        """FLOPs of all heads for one visible (query, key) pair."""
        return 2.0 * self.n_heads * (self.qk_dim + self.v_head_dim)

    @abstractmethod
    def weights(self, d_model: int, n_kv_sets: int) -> dict[str, int]:
        """Weights of its linear maps: `query`, `key_value`, and `key_value_up`, which acts on cached entries."""

    def biases(self, n_kv_sets: int) -> int:
        """Biases of its linear maps."""
        return 0

    @abstractmethod
    def norms(self, n_kv_sets: int) -> int:
        """Scales of its norms."""

    @abstractmethod
    def activation_bytes(self, n_kv_sets: int) -> int:
        """Bytes that autograd keeps of one token: rotated queries, keys, values, and what making them keeps."""

    # Formulas of the documentation: Python expressions in field names.

    @property
    def width_formula(self) -> str:
        """`qk_dim` as an expression."""
        return "head_dim"

    @property
    def width_factor(self) -> str:
        """`qk_dim` as a factor of a product."""
        return f"({self.width_formula})" if " " in self.width_formula else self.width_formula

    @property
    @abstractmethod
    def entry_formula(self) -> str:
        """Cached elements of one token, as a factor."""

    @abstractmethod
    def weight_formulas(self, separate_kv: bool) -> dict[str, str]:
        """`weights` as expressions; those that are 0 are left out."""

    def bias_formula(self, separate_kv: bool) -> str:
        """`biases` as an expression, "" for none."""
        return ""

    @abstractmethod
    def norm_formula(self, separate_kv: bool) -> str:
        """`norms` as an expression, "" for none."""
