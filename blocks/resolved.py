"""A mixer whose numbers are all known: what counting, checking, drawing and building work with. No torch.

`BlockConfig.resolve` makes one of a config, for one model width and one longest row. Nothing in it is None because it
was not written in a recipe.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from zoo.blocks.cost import BF16, Cost
from zoo.blocks.patterns.base import PatternConfig
from zoo.blocks.projections.base import ResolvedProjection

if TYPE_CHECKING:
    from zoo.blocks.config import BlockConfig


class ResolvedMixer(ABC):
    """One layer's mixer. Facts that a block of another package does not state are None, and are reported as unknown."""

    @abstractmethod
    def cost(self, seq_len: int) -> Cost:
        """Parameters, forward FLOPs and cache elements of one layer on one row of seq_len tokens."""

    @abstractmethod
    def build(self) -> Any:
        """The torch module (`blocks.interface.Mixer`)."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for tables: `MLA, window 512`."""

    def resolve(self, d_model: int, seq_len: int = 0, part: str | None = None) -> Self:
        """Itself: whatever takes a config takes its resolved form as well."""
        return self

    @property
    def attention(self) -> "ResolvedAttention | None":
        """The block as a projection and patterns; None if it is not made of these."""
        return None

    @property
    def settings(self) -> Any:
        """What has the block's fields as attributes, every number known as far as the kind resolves it."""
        return self

    def following(self) -> "ResolvedMixer":
        """The block of a layer that reads the keys and values of an earlier one (`share_kv`)."""
        raise ValueError(f"{type(self).__name__} cannot share keys and values: only a projection with patterns can")

    def reach(self, known: int, seq_len: int) -> dict[str, int] | None:
        """By pattern, the positions (bits) that can see in one layer a position whose bit is set; None: not stated."""
        return None

    def activation_bytes(self, seq_len: int) -> int | None:
        """Bytes that autograd keeps of one row between forward and backward; None: not stated."""
        return None


@dataclass(frozen=True)
class ResolvedAttention(ResolvedMixer):
    """A projection and patterns whose numbers are all known: a point of the grid.

    follows: keys and values are those of an earlier layer with the same block; this one makes and caches none.
    """

    d_model: int
    projection: ResolvedProjection
    patterns: tuple[PatternConfig, ...]
    separate_kv: bool
    output_bias: bool = False
    output_gate: str | None = None
    gate_bias: bool = False
    follows: bool = False

    def following(self) -> "ResolvedAttention":
        return replace(self, follows=True)

    @property
    def gates(self) -> int:
        """Gates between patterns of one token; 0 with one pattern."""
        return self.projection.n_heads * len(self.patterns) if len(self.patterns) > 1 else 0

    @property
    def output_gates(self) -> int:
        """Gates on attention's output of one token."""
        of_head = {None: 0, "head": 1, "channel": self.projection.v_head_dim}[self.output_gate]
        return self.projection.n_heads * of_head

    def pattern(self, kind: str) -> PatternConfig | None:
        """The pattern of that kind, or None."""
        return next((pattern for pattern in self.patterns if pattern.kind == kind), None)

    @property
    def in_order(self) -> list[PatternConfig]:
        """The patterns, each after those whose results it reads."""
        found: list[PatternConfig] = []
        waiting = list(self.patterns)
        while waiting:
            done = {pattern.kind for pattern in found}
            ready = [pattern for pattern in waiting if done.issuperset(pattern.needs)]
            assert ready, "AttentionConfig refuses patterns that need each other"
            found += ready
            waiting = [pattern for pattern in waiting if pattern not in ready]
        return found

    @property
    def n_kv_sets(self) -> int:
        """How many key/value projections the block has; 0 if it reads those of an earlier layer."""
        if self.follows:
            return 0
        return len(self.patterns) if self.separate_kv else 1

    @property
    def attention(self) -> "ResolvedAttention":
        return self

    def point(self, d_model: int, seq_len: int = 0) -> "ResolvedAttention":
        """Itself, as of an `AttentionConfig`."""
        return self

    def build(self) -> Any:
        from zoo.blocks.base import Attention

        return Attention(self, self.d_model)

    def describe(self) -> str:
        patterns = (pattern.describe() for pattern in self.patterns)
        position = ["no rotation"] * (not self.projection.position.rotates)
        shared = ["keys of an earlier layer"] * self.follows
        return ", ".join([self.projection.kind.upper(), *patterns, *position, *shared])

    def reach(self, known: int, seq_len: int) -> dict[str, int]:
        return {pattern.kind: pattern.reach(known, seq_len) for pattern in self.patterns}

    def cost(self, seq_len: int) -> Cost:
        if seq_len < 1:
            raise ValueError(f"cost: seq_len must be at least 1; found {seq_len}")
        nominal, held, other_bytes = self._cache(seq_len)
        return Cost(self._parameters(), self._flops(seq_len), nominal, held, other_bytes)

    def _weights(self) -> dict[str, int]:
        """Weights of the linear maps by part."""
        return {
            **self.projection.weights(self.d_model, self.n_kv_sets),
            "gate": self.d_model * self.gates,
            "output_gate": self.d_model * self.output_gates,
            "output": self.projection.n_heads * self.projection.v_head_dim * self.d_model,
        }

    def _parameters(self) -> dict[str, int]:
        counts = self._weights()
        for pattern in self.patterns:
            for part, count in pattern.parameters(self.projection).items():
                counts[part] = counts.get(part, 0) + count
        counts["sinks"] = self.projection.n_heads if self.projection.sinks else 0
        counts["norm"] = self.projection.norms(self.n_kv_sets)
        counts["bias"] = self.projection.biases(self.n_kv_sets) + (self.d_model if self.output_bias else 0)
        counts["bias"] += self.gates if self.gate_bias else 0
        return {part: count for part, count in counts.items() if count}

    def _flops(self, seq_len: int) -> dict[str, float]:
        """Each map multiplies every token once; `key_value_up` every entry of which keys and values are made."""
        weights = self._weights()
        made = sum(pattern.made_keys(seq_len) for pattern in self.patterns)
        expanded = made + (seq_len if any(pattern.reads_tokens for pattern in self.patterns) else 0)
        flops = {part: 2.0 * (expanded if part == "key_value_up" else seq_len) * n for part, n in weights.items()}
        for pattern in self.patterns:
            flops |= pattern.flops(self, seq_len)
        return {part: count for part, count in flops.items() if count}

    def _cache(self, seq_len: int) -> tuple[int, int, int]:
        """(nominal elements, held elements, bytes of buffers with a dtype of their own).

        Patterns that share keys share the tokens that any of them keeps.
        """
        if self.follows:
            return 0, 0, 0
        entry = self.projection.entry_elements
        buffers = [b for p in self.patterns for b in p.buffers(self.projection, seq_len).values()]
        tokens = [pattern.kept_tokens(seq_len) for pattern in self.patterns]
        held = entry * (sum(tokens) if self.separate_kv else max(tokens))
        held += sum(buffer.elements for buffer in buffers if buffer.dtype is None)
        other = sum(buffer.elements * buffer.element_bytes for buffer in buffers if buffer.dtype is not None)
        return entry * seq_len * self.n_kv_sets, held, other

    def activation_bytes(self, seq_len: int) -> int:
        """The input, which the projection and the gates read; the gates and their sum are kept as well."""
        projection, n_patterns = self.projection, len(self.patterns)
        per_token = BF16 * self.d_model + projection.activation_bytes(self.n_kv_sets)
        if n_patterns > 1:
            per_token += BF16 * projection.n_heads * (n_patterns + projection.v_head_dim)
        if self.output_gates:
            per_token += BF16 * (self.output_gates + projection.n_heads * projection.v_head_dim)
        return int(seq_len * per_token + sum(pattern.activation_bytes(self, seq_len) for pattern in self.patterns))


@dataclass(frozen=True)
class StatedMixer(ResolvedMixer):
    """A block that states its own `cost` or `build`, or both.

    point: the block as projection and patterns, of which what it does not state is taken; None if it is no such point.
    """

    config: "BlockConfig"
    d_model: int
    part: str | None
    point: ResolvedAttention | None

    @property
    def attention(self) -> ResolvedAttention | None:
        return self.point

    @property
    def settings(self) -> Any:
        return self.config

    def cost(self, seq_len: int) -> Cost:
        if self.config.states("cost") or self.point is None:
            return self.config.cost(self.d_model, seq_len, self.part)
        return self.point.cost(seq_len)

    def build(self) -> Any:
        if self.config.states("build") or self.point is None:
            return self.config.build(self.d_model, self.part)
        return self.point.build()

    def describe(self) -> str:
        return self.config.kind if self.point is None else self.point.describe()

    def reach(self, known: int, seq_len: int) -> dict[str, int] | None:
        return None if self.point is None else self.point.reach(known, seq_len)

    def activation_bytes(self, seq_len: int) -> int | None:
        return None if self.point is None else self.point.activation_bytes(seq_len)
