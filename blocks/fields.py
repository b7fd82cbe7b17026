"""The fields that attention blocks are configured with: their types, bounds, descriptions and checks. No torch.

Every class here is a set of fields with the checks that concern them; blocks/config.py and blocks/kinds/ combine them.
A default that is None is worked out from other fields and d_model by `filled`, in one place for every kind.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from zoo.blocks.checked import (
    Checked,
    Count,
    FieldProblem,
    Flag,
    Kinded,
    Length,
    Positive,
    Size,
)
from zoo.blocks.rope_fields import PositionTemperature, RopeFields

__all__ = [
    "Checked",
    "Chunk",
    "ChunkFields",
    "CompressionBlock",
    "CompressionFields",
    "CompressionStride",
    "Count",
    "FieldProblem",
    "Flag",
    "GQAFields",
    "GateFields",
    "GroupedLatentFields",
    "KVHeads",
    "Kinded",
    "LatentFields",
    "LatentHeads",
    "Length",
    "NSelected",
    "OutputFields",
    "PositionTemperature",
    "Positive",
    "QueryGroup",
    "RopeFields",
    "ScoreFields",
    "SelectionBlock",
    "SelectionFields",
    "SharingFields",
    "Size",
    "Window",
    "WindowFields",
    "norm_set_problems",
    "stride_problems",
]

# Fields that several kinds have, some with defaults of their own.
ScoreScale = Annotated[
    Positive | None, Field(description="What query-key products are multiplied by. Default: 1 / sqrt(score width).")
]
KVHeads = Annotated[Count, Field(description="Key/value heads K; H/K query heads share one.")]
LatentHeads = Annotated[Count, Field(description="Latent heads C, of kv_rank/C channels, each read by H/C heads.")]
Window = Annotated[Length, Field(description="Sliding window in tokens, the query's own token included.")]
Chunk = Annotated[Length, Field(description="Tokens m of a chunk; a query sees the keys of its own chunk.")]
CompressionBlock = Annotated[Size, Field(description="Tokens l that are pooled into one compressed key and value.")]
CompressionStride = Annotated[Size, Field(description="Tokens s from the start of one compression block to the next.")]
SelectionBlock = Annotated[Size, Field(description="Tokens b of a selection block.")]
NSelected = Annotated[Count, Field(description="Selection blocks n that a query attends to, forced ones included.")]
QueryGroup = Annotated[Count, Field(description="Consecutive queries q that share one selection; 1: each has its own.")]


class GQAFields(Checked):
    """Grouped-query attention: every head has its own query, H/K heads share a key and a value."""

    n_heads: Count = Field(16, description="Query heads H.")
    n_kv_heads: Count | None = Field(None, description="Key/value heads K, H/K share one. Default: n_heads.")
    head_dim: Size | None = Field(
        None, description="Channels of a query/key head; an even number if all are rotated. Default: d_model / n_heads."
    )
    v_head_dim: Size | None = Field(None, description="Channels of a value head. Default: head_dim.")
    rope_fraction: Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        1.0, description="Share of a head's channels that are rotated, the first ones (partial rotary)."
    )
    qkv_bias: Flag = Field(False, description="Biases on queries, keys and values.")
    qk_norm: Flag = Field(False, description="RMSNorm over each query and key head, before the rotation.")
    qk_norm_over: Literal["head", "width"] = Field(
        "head", description="What qk_norm takes the mean over: each head, or all heads together (OLMo 2)."
    )
    qk_norm_place: Literal["before", "after"] = Field(
        "before", description="Whether qk_norm comes before the rotation or after it (Llama 4)."
    )
    qk_norm_scale: Flag = Field(True, description="Whether qk_norm has learned scales; false: none (Llama 4).")
    score_scale: ScoreScale = None
    norm_eps: Positive = Field(1e-6, le=1, description="Epsilon of the RMSNorms inside the block.")

    def filled(self, d_model: int | None) -> dict[str, Any]:
        """The fields that have a derived default, each with its value; None where d_model is needed and not known."""
        head_dim = self.head_dim or _share(d_model, self.n_heads)
        return {
            "n_kv_heads": self.n_kv_heads or self.n_heads,
            "head_dim": head_dim,
            "v_head_dim": self.v_head_dim or head_dim,
        }

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        found = super().problems(d_model) + _head_problems(self, d_model) + self._rotary_problems(d_model)
        for name in ("qk_norm_over", "qk_norm_place", "qk_norm_scale"):
            value = getattr(self, name)
            if not self.qk_norm and value != type(self).model_fields[name].default:
                found.append(((name,), f"needs qk_norm: true; found {repr(value).lower()} without it"))
        if self.qk_norm_place == "after" and not _rotates(self):
            found.append((("qk_norm_place",), "needs rope: true; found 'after' without rotation"))
        return found

    def _rotary_problems(self, d_model: int | None) -> list[FieldProblem]:
        """The rotated channels are pairs; with `rope_fraction` a whole number of them."""
        width = self.filled(d_model)["head_dim"]
        if self.rope_fraction == 1:
            return _rotary_problems(self, "head_dim", d_model)
        if not _rotates(self):
            return [(("rope_fraction",), f"needs rope: true; found {self.rope_fraction:g} without rotation")]
        if width is None or rotated_channels(width, self.rope_fraction):
            return []
        why = f"must rotate an even number of the head's {width} channels, 2 or more"
        return [(("rope_fraction",), f"{why}; found {self.rope_fraction:g}, {width * self.rope_fraction:g} channels")]


class ScoreFields(Checked):
    """What changes scores beyond their scale; patterns that can have it say so (`PatternConfig.score_options`)."""

    sinks: Flag = Field(
        False, description="A learned logit for each query head that is added to the softmax's denominator (gpt-oss)."
    )
    score_softcap: Positive | None = Field(
        None, le=1e6, description="Scores x become c tanh(x / c) before the softmax (Gemma 2: 50). Default: none."
    )


class LatentFields(Checked):
    """Multi-head latent attention: keys and values are made from one small latent, which is all that is cached."""

    n_heads: Count = Field(16, description="Query heads H.")
    head_dim: Size | None = Field(
        None, description="Content (not rotated) channels of a head. Default: d_model / n_heads."
    )
    rope_dim: Annotated[int, Field(strict=True, ge=0, le=65_536)] | None = Field(
        None,
        description="Channels of the rotary key that all heads share (even; 0: none). Default: head_dim / 2, even.",
    )
    v_head_dim: Size | None = Field(None, description="Channels of a value head. Default: head_dim.")
    kv_rank: Size | None = Field(
        None, description="Width r of the cached latent, all latent heads together. Default: 4 head_dim."
    )
    q_rank: Size | None = Field(
        None, description="Width of a query latent with its own norm. Default: none, queries come straight from x."
    )
    latent_norm: Flag = Field(True, description="RMSNorm of each latent head; false: none, keys are linear in x.")
    latent_scale: Positive = Field(
        1.0, description="What the latent is multiplied by after its norm; some models: sqrt(d_model / kv_rank)."
    )
    q_latent_scale: Positive = Field(
        1.0, description="What the query latent is multiplied by after its norm; some models: sqrt(d_model / q_rank)."
    )
    score_scale: ScoreScale = None
    norm_eps: Positive = Field(1e-6, le=1, description="Epsilon of the RMSNorms inside the block.")

    def filled(self, d_model: int | None) -> dict[str, Any]:
        """The fields that have a derived default, each with its value; None where d_model is needed and not known.

        rope_dim = head_dim / 2 and kv_rank = 4 head_dim are DeepSeek-V2's (arXiv 2405.04434, section 2.1).
        """
        head_dim = self.head_dim or _share(d_model, self.n_heads)
        return {
            "head_dim": head_dim,
            "rope_dim": (head_dim and max(head_dim // 4 * 2, 2)) if self.rope_dim is None else self.rope_dim,
            "v_head_dim": self.v_head_dim or head_dim,
            "kv_rank": self.kv_rank or (head_dim and 4 * head_dim),
        }

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        found = super().problems(d_model) + _head_problems(self, d_model) + _rotary_problems(self, "rope_dim", d_model)
        if self.latent_scale != 1 and not self.latent_norm:
            found.append((("latent_scale",), f"needs latent_norm: true; found {self.latent_scale:g} without the norm"))
        if self.q_latent_scale != 1 and not self.q_rank:
            found.append((("q_latent_scale",), f"needs q_rank; found {self.q_latent_scale:g} without a query latent"))
        return found


class GroupedLatentFields(LatentFields):
    """Grouped latent attention: K groups of heads share a key and a value, each made from one of C latent heads."""

    n_kv_heads: Count | None = Field(None, description="Key/value heads K, H/K share one. Default: n_heads.")
    n_latent_heads: LatentHeads = 1

    def filled(self, d_model: int | None) -> dict[str, Any]:
        return super().filled(d_model) | {"n_kv_heads": self.n_kv_heads or self.n_heads}

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        values, latent_heads = self.filled(d_model), self.n_latent_heads
        found = super().problems(d_model)
        if values["n_kv_heads"] % latent_heads:
            why = f"must divide the key/value heads ({values['n_kv_heads']}), for each reads one latent head"
            found.append((("n_latent_heads",), f"{why}; found {latent_heads}"))
        if values["kv_rank"] and values["kv_rank"] % latent_heads:
            why = f"must be a multiple of n_latent_heads ({latent_heads}), which cut it in equal parts"
            found.append((("kv_rank",), f"{why}; found {values['kv_rank']}"))
        return found


class OutputFields(Checked):
    """What follows attention: the map that writes to the residual stream, and a gate before it."""

    output_bias: Flag = Field(False, description="A bias on the output map.")
    output_gate: Literal["head", "channel"] | None = Field(
        None, description="A sigmoid gate of x on attention's output, one a head or one a channel. Default: none."
    )

    @property
    def of_output(self) -> dict[str, Any]:
        """These fields by name, for the config that a kind stands for."""
        return {name: getattr(self, name) for name in OutputFields.model_fields}


class SharingFields(Checked):
    """Layers that share keys and values."""

    share_kv: Count = Field(
        1,
        description="How many layers of this block share keys and values. The first of them, in the order of the "
        "schedule, makes and caches them. 1: none.",
    )


class GateFields(Checked):
    """The gates between several patterns."""

    gate_bias: Flag = Field(False, description="Biases on the gates between patterns.")


class WindowFields(Checked):
    """A sliding window."""

    window: Window = 512


class ChunkFields(Checked):
    """Chunks of tokens."""

    chunk: Chunk = 8192


class CompressionFields(Checked):
    """Blocks of tokens pooled into one entry; the defaults are the NSA paper's (arXiv 2502.11089)."""

    compression_block: CompressionBlock = 32
    compression_stride: CompressionStride = 16
    pooling: Literal["mean", "mlp"] = Field(
        "mean", description="How a block becomes one entry: its mean, or a learned two-layer MLP (as in NSA)."
    )
    pool_rotated: Flag = Field(
        True, description="Pool keys after their rotation; false: before, then rotate by the block's mean position."
    )

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
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

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        found = super().problems(d_model)
        forced = self.n_init + self.n_local
        if self.n_selected < forced:
            why = f"must be at least n_init + n_local ({forced}), the blocks that are always selected"
            found.append((("n_selected",), f"{why}; found {self.n_selected}"))
        if self.selection_block % self.query_group:
            why = f"must divide selection_block ({self.selection_block}), so that a group lies in one block"
            found.append((("query_group",), f"{why}; found {self.query_group}"))
        return found


def stride_problems(compression: CompressionFields, selection: SelectionFields) -> list[FieldProblem]:
    """What is wrong between the two: importance moves from compression to selection blocks in stride-sized pieces."""
    if selection.selection_block % compression.compression_stride == 0:
        return []
    why = f"must be a multiple of compression_stride ({compression.compression_stride})"
    return [(("selection_block",), f"{why}; found {selection.selection_block}")]


def _share(d_model: int | None, n_heads: int) -> int | None:
    """d_model / n_heads where it comes out even."""
    return None if d_model is None or d_model % n_heads else d_model // n_heads


def _head_problems(fields: GQAFields | LatentFields, d_model: int | None) -> list[FieldProblem]:
    found: list[FieldProblem] = []
    n_kv_heads = fields.filled(d_model).get("n_kv_heads", fields.n_heads)
    if fields.n_heads % n_kv_heads:
        found.append((("n_kv_heads",), f"must divide n_heads ({fields.n_heads}); found {n_kv_heads}"))
    if d_model is not None and fields.head_dim is None and d_model % fields.n_heads:
        why = f"must divide d_model ({d_model}) where head_dim is not given"
        found.append((("n_heads",), f"{why}; found {fields.n_heads}"))
    return found


def norm_set_problems(fields: Any, separate_kv: bool) -> list[FieldProblem]:
    """Keys that are normed after their rotation have one norm, so a block cannot have several sets of them."""
    if not separate_kv or getattr(fields, "qk_norm_place", "before") == "before" or not fields.qk_norm_scale:
        return []
    return [(("qk_norm_place",), "needs separate_kv: false, or qk_norm_scale: false; found 'after' with separate keys")]


def rotated_channels(width: int, fraction: float) -> int:
    """Channels of a head that are rotated; 0 if the fraction is no even number of them."""
    channels = round(width * fraction)
    return channels if channels % 2 == 0 and abs(channels - width * fraction) < 1e-6 * width else 0


def _rotates(fields: Any) -> bool:
    """Whether keys are rotated; a set of fields without a position embedding has nothing to say against it."""
    return not isinstance(fields, RopeFields) or fields.embedding.rotates


def _rotary_problems(fields: GQAFields | LatentFields, name: str, d_model: int | None) -> list[FieldProblem]:
    width = fields.filled(d_model)[name]
    if width is None or width % 2 == 0 or not _rotates(fields):
        return []
    return [((name,), f"must be even, for rotation works on pairs of channels; found {width}")]
