"""The fields that attention blocks are configured with: their types, bounds, descriptions and checks. No torch.

Every class here is a set of fields with the checks that concern them; blocks/config.py and blocks/kinds/ combine them.
A default that is None is worked out from other fields and d_model by `filled`, in one place for every kind.
"""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from zoo.blocks.about import About

Problem = tuple[tuple[str | int, ...], str]  # (path of the key inside the config, what is wrong with it)


# The bounds of each kind of number. Types are strict: a recipe's "16" or true is no number.
Count = Annotated[int, Field(strict=True, ge=1, le=4096)]  # heads, blocks
Size = Annotated[int, Field(strict=True, ge=1, le=65_536)]  # channels, tokens of a block
Length = Annotated[int, Field(strict=True, ge=1, le=2**30)]  # tokens of a context
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]

# Fields that several kinds have, some with defaults of their own.
KVHeads = Annotated[Count, Field(description="Key/value heads K; H/K query heads share one.")]
LatentHeads = Annotated[Count, Field(description="Latent heads C, of kv_rank/C channels, each read by H/C heads.")]
Window = Annotated[Length, Field(description="Sliding window in tokens, the query's own token included.")]
CompressionBlock = Annotated[Size, Field(description="Tokens l that are pooled into one compressed key and value.")]
CompressionStride = Annotated[Size, Field(description="Tokens s from the start of one compression block to the next.")]
SelectionBlock = Annotated[Size, Field(description="Tokens b of a selection block.")]
NSelected = Annotated[Count, Field(description="Selection blocks n that a query attends to, forced ones included.")]
QueryGroup = Annotated[Count, Field(description="Consecutive queries q that share one selection; 1: each has its own.")]


class Checked(BaseModel):
    """A config that lists all its problems at once, each with the key it belongs to.

    `problems(d_model)` returns them; with d_model None, only those that do not depend on it, which are also raised when
    the config is made. Subclasses add theirs to `super().problems(d_model)`.
    """

    # defer_build: a validator is made when it is first used, and most configs and sets of fields are not, in a command.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    def problems(self, d_model: int | None = None) -> list[Problem]:
        return []

    @model_validator(mode="after")
    def _refuse_problems(self) -> Self:
        if found := self.problems():
            lines = [
                InitErrorDetails(type=PydanticCustomError("block", "{why}", {"why": why}), loc=path, input=self)
                for path, why in found
            ]
            raise ValidationError.from_exception_data(type(self).__name__, lines)
        return self


class Kinded(Checked):
    """A config that says what it is. Last of the bases, so that `kind` is the first field."""

    about: ClassVar[About] = About()  # what its page in the documentation says beyond fields and cost

    kind: str


class LinearScaling(Checked):
    """Position interpolation (Chen 2023, arXiv 2306.15595): every rotary frequency divided by `factor`."""

    rope_type: Literal["linear"] = Field(description="Linear position interpolation.")
    factor: Factor = Field(description="How many times longer the context becomes.")

    @property
    def attention_factor_value(self) -> float:
        return 1.0

    @property
    def score_factor(self) -> float:
        return 1.0


class YarnScaling(Checked):
    """YaRN (Peng 2023, arXiv 2309.00071); names and meaning of the fields as in Hugging Face transformers."""

    rope_type: Literal["yarn"] = Field(description="YaRN interpolation by parts.")
    factor: Factor = Field(description="How many times longer the context becomes.")
    original_max_position_embeddings: Length = Field(description="Context length before the extension, in tokens.")
    attention_factor: Positive | None = Field(
        None, description="Multiplies cos and sin. Default: from factor, mscale and mscale_all_dim."
    )
    beta_fast: Positive = Field(32.0, description="Channels that turn more often in the old context are left alone.")
    beta_slow: Positive = Field(1.0, description="Channels that turn less often in it are interpolated.")
    mscale: Weight | None = Field(
        None, description="Weight of log(factor) in the attention factor's numerator; counts with mscale_all_dim."
    )
    mscale_all_dim: Weight | None = Field(
        None, description="The same for the denominator; in MLA and GLA it also scales the scores (DeepSeek-V2)."
    )
    truncate: Flag = Field(True, description="Round the bounds of the interpolated channels outwards.")

    @property
    def attention_factor_value(self) -> float:
        """What cos and sin are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    @property
    def score_factor(self) -> float:
        """What the softmax scale of a latent projection is multiplied by, as DeepSeek's own code does."""
        return self._mscale(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _mscale(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1.0

    def problems(self, d_model: int | None = None) -> list[Problem]:
        found = super().problems(d_model)
        if self.beta_fast <= self.beta_slow:
            found.append((("beta_fast",), f"must be above beta_slow ({self.beta_slow:g}); found {self.beta_fast:g}"))
        return found


RopeScaling = Annotated[LinearScaling | YarnScaling, Field(discriminator="rope_type")]


class RopeFields(Checked):
    """Rotary position embedding (Su 2021, arXiv 2104.09864); channel i turns with channel i + d/2 (half split)."""

    rope_theta: Annotated[float, Field(strict=True, gt=1, allow_inf_nan=False)] = Field(
        10_000.0, description="Base of the rotary wavelengths."
    )
    rope_scaling: RopeScaling | None = Field(
        None, description="Context extension, `linear` or `yarn`, spelt as in transformers. Default: none."
    )


class GQAFields(Checked):
    """Grouped-query attention: every head has its own query, H/K heads share a key and a value."""

    n_heads: Count = Field(16, description="Query heads H.")
    n_kv_heads: Count | None = Field(None, description="Key/value heads K, H/K share one. Default: n_heads.")
    head_dim: Size | None = Field(
        None, description="Channels of a query/key head, all rotated (even). Default: d_model / n_heads."
    )
    v_head_dim: Size | None = Field(None, description="Channels of a value head. Default: head_dim.")
    qk_norm: Flag = Field(False, description="RMSNorm over each query and key head, before the rotation.")
    norm_eps: Positive = Field(1e-6, le=1, description="Epsilon of the RMSNorms inside the block.")

    def filled(self, d_model: int | None) -> dict[str, Any]:
        """The fields that have a derived default, each with its value; None where d_model is needed and not known."""
        head_dim = self.head_dim or _share(d_model, self.n_heads)
        return {
            "n_kv_heads": self.n_kv_heads or self.n_heads,
            "head_dim": head_dim,
            "v_head_dim": self.v_head_dim or head_dim,
        }

    def problems(self, d_model: int | None = None) -> list[Problem]:
        return super().problems(d_model) + _head_problems(self, d_model) + _rotary_problems(self, "head_dim", d_model)


class LatentFields(Checked):
    """Multi-head latent attention: keys and values are made from one small latent, which is all that is cached."""

    n_heads: Count = Field(16, description="Query heads H.")
    head_dim: Size | None = Field(
        None, description="Content (not rotated) channels of a head. Default: d_model / n_heads."
    )
    rope_dim: Size | None = Field(
        None, description="Channels of the rotary key that all heads share (even). Default: head_dim / 2, made even."
    )
    v_head_dim: Size | None = Field(None, description="Channels of a value head. Default: head_dim.")
    kv_rank: Size | None = Field(
        None, description="Width r of the cached latent, all latent heads together. Default: 4 head_dim."
    )
    q_rank: Size | None = Field(
        None, description="Width of a query latent with its own norm. Default: none, queries come straight from x."
    )
    norm_eps: Positive = Field(1e-6, le=1, description="Epsilon of the RMSNorms inside the block.")

    def filled(self, d_model: int | None) -> dict[str, Any]:
        """The fields that have a derived default, each with its value; None where d_model is needed and not known.

        rope_dim = head_dim / 2 and kv_rank = 4 head_dim are DeepSeek-V2's (arXiv 2405.04434, section 2.1).
        """
        head_dim = self.head_dim or _share(d_model, self.n_heads)
        return {
            "head_dim": head_dim,
            "rope_dim": self.rope_dim or (head_dim and max(head_dim // 4 * 2, 2)),
            "v_head_dim": self.v_head_dim or head_dim,
            "kv_rank": self.kv_rank or (head_dim and 4 * head_dim),
        }

    def problems(self, d_model: int | None = None) -> list[Problem]:
        return super().problems(d_model) + _head_problems(self, d_model) + _rotary_problems(self, "rope_dim", d_model)


class GroupedLatentFields(LatentFields):
    """Grouped latent attention: K groups of heads share a key and a value, each made from one of C latent heads."""

    n_kv_heads: Count | None = Field(None, description="Key/value heads K, H/K share one. Default: n_heads.")
    n_latent_heads: LatentHeads = 1

    def filled(self, d_model: int | None) -> dict[str, Any]:
        return super().filled(d_model) | {"n_kv_heads": self.n_kv_heads or self.n_heads}

    def problems(self, d_model: int | None = None) -> list[Problem]:
        values, latent_heads = self.filled(d_model), self.n_latent_heads
        found = super().problems(d_model)
        if values["n_kv_heads"] % latent_heads:
            why = f"must divide the key/value heads ({values['n_kv_heads']}), for each reads one latent head"
            found.append((("n_latent_heads",), f"{why}; found {latent_heads}"))
        if values["kv_rank"] and values["kv_rank"] % latent_heads:
            why = f"must be a multiple of n_latent_heads ({latent_heads}), which cut it in equal parts"
            found.append((("kv_rank",), f"{why}; found {values['kv_rank']}"))
        return found


class WindowFields(Checked):
    """A sliding window."""

    window: Window = 512


class CompressionFields(Checked):
    """Blocks of tokens pooled into one entry; the defaults are the NSA paper's (arXiv 2502.11089)."""

    compression_block: CompressionBlock = 32
    compression_stride: CompressionStride = 16
    pooling: Literal["mean", "mlp"] = Field(
        "mean", description="How a block becomes one entry: its mean, or a learned two-layer MLP (as NSA)."
    )
    pool_rotated: Flag = Field(
        True, description="Pool keys after their rotation; false: before, then rotate by the block's mean position."
    )

    def problems(self, d_model: int | None = None) -> list[Problem]:
        found = super().problems(d_model)
        if self.compression_block % self.compression_stride:
            why = f"must divide compression_block ({self.compression_block})"
            found.append((("compression_stride",), f"{why}; found {self.compression_stride}"))
        return found


class SelectionFields(Checked):
    """Blocks of tokens chosen by importance; the defaults are the NSA paper's (arXiv 2502.11089)."""

    selection_block: SelectionBlock = 64
    n_selected: NSelected = 16
    n_init: Annotated[int, Field(strict=True, ge=0, le=4096)] = Field(
        1, description="First blocks of a document, always selected."
    )
    n_local: Count = Field(2, description="Latest blocks, the query's own included, always selected.")
    query_group: QueryGroup = 1

    def problems(self, d_model: int | None = None) -> list[Problem]:
        found = super().problems(d_model)
        forced = self.n_init + self.n_local
        if self.n_selected < forced:
            why = f"must be at least n_init + n_local ({forced}), the blocks that are always selected"
            found.append((("n_selected",), f"{why}; found {self.n_selected}"))
        if self.selection_block % self.query_group:
            why = f"must divide selection_block ({self.selection_block}), so that a group lies in one block"
            found.append((("query_group",), f"{why}; found {self.query_group}"))
        return found


def stride_problems(compression: CompressionFields, selection: SelectionFields) -> list[Problem]:
    """What is wrong between the two: importance moves from compression to selection blocks in stride-sized pieces."""
    if selection.selection_block % compression.compression_stride == 0:
        return []
    why = f"must be a multiple of compression_stride ({compression.compression_stride})"
    return [(("selection_block",), f"{why}; found {selection.selection_block}")]


def _share(d_model: int | None, n_heads: int) -> int | None:
    """d_model / n_heads where it comes out even."""
    return None if d_model is None or d_model % n_heads else d_model // n_heads


def _head_problems(fields: GQAFields | LatentFields, d_model: int | None) -> list[Problem]:
    found: list[Problem] = []
    n_kv_heads = fields.filled(d_model).get("n_kv_heads", fields.n_heads)
    if fields.n_heads % n_kv_heads:
        found.append((("n_kv_heads",), f"must divide n_heads ({fields.n_heads}); found {n_kv_heads}"))
    if d_model is not None and fields.head_dim is None and d_model % fields.n_heads:
        why = f"must divide d_model ({d_model}) where head_dim is not given"
        found.append((("n_heads",), f"{why}; found {fields.n_heads}"))
    return found


def _rotary_problems(fields: GQAFields | LatentFields, name: str, d_model: int | None) -> list[Problem]:
    width = fields.filled(d_model)[name]
    if width is None or width % 2 == 0:
        return []
    return [((name,), f"must be even, for rotation works on pairs of channels; found {width}")]
