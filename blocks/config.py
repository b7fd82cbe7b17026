"""What every block config is, and the generic block: one projection and one or more patterns. No torch.

`AttentionConfig` is a point of the grid of docs/blocks.md; every kind in blocks/kinds/ is a shorter spelling of one.
"""

from functools import partial
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Field

from zoo.blocks.about import About
from zoo.blocks.checked import NUMBER, Fact, Facts, FieldProblem, Flag, Kinded
from zoo.blocks.cost import Cost
from zoo.blocks.fields import GateFields, OutputFields, SharingFields, norm_set_problems
from zoo.blocks.patterns.base import SCORE_OPTIONS, PatternConfig
from zoo.blocks.patterns.full_config import Full
from zoo.blocks.projections.base import ProjectionConfig
from zoo.blocks.projections.gqa_config import GQA
from zoo.blocks.registry import PATTERNS, PROJECTIONS, PartOf
from zoo.blocks.resolved import ResolvedAttention, ResolvedMixer, StatedMixer

DEFAULT_SEQ_LEN = 4096  # the longest row that a block is resolved for if nobody says

Config = TypeVar("Config", bound=BaseModel)
_PARTS = {  # that blocks of other packages import from here; a recipe without them does without their modules
    "GLA": "zoo.blocks.projections.latent_config",
    "MLA": "zoo.blocks.projections.latent_config",
    "Compression": "zoo.blocks.patterns.compression_config",
    "Selection": "zoo.blocks.patterns.selection_config",
    "Window": "zoo.blocks.patterns.window_config",
}


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return getattr(import_module(_PARTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class BlockConfig(Kinded):
    """The config of one kind of block, as a recipe writes it: a field is None where it is derived.

    Blocks from elsewhere subclass it too. A kind that is a point of the grid defines `grid_point`; any other kind
    defines `cost` and `build`. What a config defines itself counts before what follows from its grid point.
    """

    parts: ClassVar[tuple[str, ...]] = ()  # what may follow the name in a schedule (`ansa.local`)

    @property
    def alternation(self) -> tuple[str, ...]:
        """The parts in the order in which the bare name takes them, occurrence by occurrence."""
        return self.parts

    @classmethod
    def states(cls, method: str) -> bool:
        """Whether the kind defines the method itself."""
        return getattr(cls, method) is not getattr(BlockConfig, method)

    def resolve(self, d_model: int, seq_len: int = DEFAULT_SEQ_LEN, part: str | None = None) -> ResolvedMixer:
        """The block with every number known, for a model of that width whose longest row has seq_len tokens.

        Raises ValueError if the block cannot be built for d_model, or has no such part.
        """
        on_grid = self.states("grid_point") or not self.states("cost")
        point = self.grid_point(d_model, part).point(d_model, seq_len) if on_grid else None
        if point is not None and not self.states("cost") and not self.states("build"):
            return point
        return StatedMixer(self, d_model, part, point)

    def facts(self, d_model: int, seq_len: int, part: str | None = None) -> Facts:
        """What a block of another package is asked for."""
        yield Fact("resolve", lambda: self.resolve(d_model, seq_len, part), (ResolvedMixer,))
        mixer = self.resolve(d_model, seq_len, part)
        yield Fact("describe", mixer.describe, (str,))
        yield Fact("cost", lambda: mixer.cost(seq_len), (Cost,))
        cost = mixer.cost(seq_len)
        for name in ("total_parameters", "cache_nominal_elements", "cache_held_elements"):
            yield Fact(f"cost: {name}", partial(getattr, cost, name), NUMBER)
        yield Fact("cost: total_flops", lambda: cost.total_flops, NUMBER)
        yield Fact("activation_bytes", lambda: mixer.activation_bytes(seq_len), (*NUMBER, type(None)))

    def grid_point(self, d_model: int, part: str | None = None) -> "AttentionConfig":
        """The same block spelt as projection and patterns, with every default worked out for d_model."""
        raise NotImplementedError(f"{type(self).__name__} defines neither grid_point nor its own cost and build")

    def cost(self, d_model: int, seq_len: int, part: str | None = None) -> Cost:
        """Parameters, forward FLOPs and cache elements of one layer on one row of seq_len tokens."""
        return self.grid_point(d_model, part).resolve(d_model).cost(seq_len)

    def build(self, d_model: int, part: str | None = None) -> Any:
        """The torch module of one layer."""
        return self.grid_point(d_model, part).resolve(d_model).build()

    def check(self, d_model: int, part: str | None = None) -> None:
        """Raise ValueError if the block cannot be built for d_model, or has no such part."""
        if part not in (self.parts or (None,)):
            known = f"one of {', '.join(self.parts)}" if self.parts else "none, the block has a single part"
            raise ValueError(f"block {type(self).__name__}: part must be {known}; found {part!r}")
        if found := self.problems(d_model):
            lines = [f"{'.'.join(map(str, path))} {why}" for path, why in found]
            raise ValueError(f"block {type(self).__name__}: " + "; ".join(lines))

    def lower(self, target: type[Config], d_model: int, **changes: Any) -> Config:
        """A `target` config made from this config's fields of the same names, derived defaults worked out."""
        filled = getattr(self, "filled", None) if hasattr(target, "filled") else None
        values = {**dict(self), **(filled(d_model) if filled is not None else {}), **changes}
        return target(**{name: values[name] for name in target.model_fields if name in values and name != "kind"})


Projection = Annotated[ProjectionConfig, PartOf(PROJECTIONS)]
Pattern = Annotated[PatternConfig, PartOf(PATTERNS)]


class AttentionConfig(GateFields, SharingFields, OutputFields, BlockConfig):
    """Any projection with any set of patterns; several patterns are summed with one sigmoid gate per head and pattern.

    The generic kind `attention`: every other kind is a shorter spelling of one of these.
    """

    about: ClassVar[About] = About(
        example={
            "projection": {"kind": "mla", "n_heads": 8, "kv_rank": 96, "rope_dim": 16},
            "patterns": [
                {"kind": "compression", "compression_block": 16, "compression_stride": 16},
                {"kind": "selection", "selection_block": 16, "n_selected": 6},
                {"kind": "window", "window": 64},
            ],
        }
    )

    kind: Literal["attention"] = Field("attention", description="A projection and patterns, spelt out.")
    projection: Projection = Field(default_factory=GQA, description="How queries, keys and values are made.")
    patterns: tuple[Pattern, ...] = Field(
        (Full(),), min_length=1, max_length=4, description="Which keys a query sees; each pattern at most once."
    )
    separate_kv: Flag = Field(False, description="Separate keys and values for each pattern (gqa only), as in NSA.")

    def pattern(self, kind: str) -> PatternConfig | None:
        """The pattern of that kind, or None."""
        return next((pattern for pattern in self.patterns if pattern.kind == kind), None)

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        found = super().problems(d_model)
        found += [(("projection", *path), why) for path, why in self.projection.problems(d_model)]
        kinds = [pattern.kind for pattern in self.patterns]
        by_kind = dict(zip(kinds, self.patterns, strict=True))
        for index, pattern in enumerate(self.patterns):
            own = pattern.problems(d_model) + pattern.problems_beside(by_kind)
            found += [(("patterns", index, *path), why) for path, why in own]
            if pattern.kind in kinds[:index]:
                found.append((("patterns", index), f"each pattern may be given once; found a second {pattern.kind!r}"))
        if self.separate_kv and self.projection.shares_kv:
            why = f"needs projection gqa: {self.projection.kind} {self.projection.shares_kv}"
            found.append((("separate_kv",), f"{why}; found true"))
        found += [(("projection", *path), why) for path, why in norm_set_problems(self.projection, self.separate_kv)]
        if self.separate_kv and not self.projection.shares_kv and len(kinds) == 1:
            found.append((("separate_kv",), "needs two patterns or more; found true with one"))
        found += self._score_problems()
        if self.gate_bias and len(kinds) == 1:
            found.append((("gate_bias",), "needs two patterns or more; found true with one"))
        alone = [pattern.kind for pattern in self.patterns if not pattern.reads_shared]
        if self.share_kv > 1 and alone:
            why = f"must be 1 with {' and '.join(alone)}, which makes or keeps keys of its own"
            found.append((("share_kv",), f"{why}; found {self.share_kv}"))
        return found

    def _score_problems(self) -> list[FieldProblem]:
        """Options of the projection that change scores need patterns that can have them."""
        found: list[FieldProblem] = []
        for name in SCORE_OPTIONS:
            value = getattr(self.projection, name, None)
            unable = [pattern.kind for pattern in self.patterns if name not in pattern.score_options]
            if value and unable:
                value = "true" if value is True else value
                found.append(
                    (("projection", name), f"cannot be with the pattern {' and '.join(unable)}; found {value}")
                )
        return found

    def grid_point(self, d_model: int, part: str | None = None) -> "AttentionConfig":
        self.check(d_model, part)
        projection = {**dict(self.projection), **self.projection.filled(d_model)}
        return AttentionConfig(
            projection=type(self.projection)(**projection),
            patterns=self.patterns,
            separate_kv=self.separate_kv,
            gate_bias=self.gate_bias,
            **self.of_output,
        )

    def resolve(self, d_model: int, seq_len: int = DEFAULT_SEQ_LEN, part: str | None = None) -> ResolvedMixer:
        point = self.point(d_model, seq_len, part)
        if self.states("cost") or self.states("build"):  # a kind that subclasses this one
            return StatedMixer(self, d_model, part, point)
        return point

    def point(self, d_model: int, seq_len: int = DEFAULT_SEQ_LEN, part: str | None = None) -> ResolvedAttention:
        """Projection and patterns with every number known."""
        self.check(d_model, part)
        projection = self.projection.resolve(d_model, seq_len)
        patterns = tuple(pattern.resolve(d_model, seq_len) for pattern in self.patterns)
        return ResolvedAttention(
            d_model, projection, patterns, self.separate_kv, gate_bias=self.gate_bias, **self.of_output
        )
