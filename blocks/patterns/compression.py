"""Keys and values pooled over blocks (NSA, arXiv 2502.11089, eq. 7)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from zoo.blocks.cache import CachedSource, Slots
from zoo.blocks.context import Context, Step
from zoo.blocks.interface import Attended
from zoo.blocks.parts import Entries, Keys, Queries, Source, linear
from zoo.blocks.patterns.compression_config import Compression
from zoo.blocks.projections.base import ResolvedProjection
from zoo.kernels import cached_attention, compression_attention, gather_blocks, mean_pool, n_slots
from zoo.kernels.slots.reference import completed


class Compressed(NamedTuple):
    """Attention to the pooled blocks: output o_BTHV, lse_BTH of the scores; the keys (N slots) and their grid.

    entries: what the keys were made of, or None where they are in a cache.
    """

    output: torch.Tensor
    lse: torch.Tensor
    keys: Keys
    block: int
    stride: int
    entries: Entries | None = None


class BlockMLP(nn.Module):
    """Learned pooling: W_2 silu(W_1 [x_0 + p_0 ; ... ; x_l-1 + p_l-1]), p an embedding of the offset in the block.

    x_BNLKD or x_BNLD -> x_BNKD or x_BND; heads share the weights. NSA names an MLP with position embedding and gives no
    sizes: two layers without biases, the hidden one as wide as a head, p zero at first, are ours.
    """

    def __init__(self, block: int, width: int):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(block, width))
        setattr(self.offset, "weight_decay", False)  # noqa: B010 - positions; a name that parameter_groups reads
        self.hidden = linear(block * width, width)
        self.pooled = linear(width, width)

    def forward(self, x: torch.Tensor, stride: int | None = None) -> torch.Tensor:
        """x: the tokens of each block; with a stride, the tokens of rows that are one document each."""
        if stride is not None:
            return self._over_row(x, stride)
        offset = self.offset if x.dim() == 4 else self.offset[:, None]
        flat = (x + offset).movedim(2, -2).flatten(-2)
        return self.pooled(nn.functional.silu(self.hidden(flat)))

    def _over_row(self, x: torch.Tensor, stride: int) -> torch.Tensor:
        """x_BTKD or x_BTD -> x_BNKD or x_BND.

        W_1 is applied to pieces of one stride, which blocks share, and the products are shifted and added: the tokens
        of overlapping blocks are not copied for each. Slots without a whole block hold what nobody looks at.
        """
        block, width = self.offset.shape
        n, pieces = n_slots(x.shape[1], stride), block // stride
        x_BKTD = (x if x.dim() == 4 else x[:, :, None]).transpose(1, 2)
        padded = nn.functional.pad(x_BKTD, (0, 0, 0, (n + pieces - 1) * stride - x.shape[1]))
        piece_BKNP = padded.reshape(*padded.shape[:2], -1, stride * width)
        weights = self.hidden.weight.unflatten(1, (pieces, -1)).unbind(1)
        shifted = (nn.functional.linear(piece_BKNP[:, :, c : c + n], w) for c, w in enumerate(weights))
        of_offsets = (self.hidden.weight * self.offset.flatten()).sum(1)
        hidden = sum(shifted) + of_offsets.to(x.dtype)
        pooled = self.pooled(nn.functional.silu(hidden)).transpose(1, 2)
        return pooled if x.dim() == 4 else pooled.squeeze(2)


class CompressionPattern(nn.Module):
    """Query t sees one pooled key and value for each block that lies wholly in its past.

    What is cached is what is pooled: keys and values, or each latent head and the rotary key, from which pooled keys
    and values are then made (for the mean the order does not matter). Keys are pooled as rotated, or, with
    `pool_rotated: false`, before, and then rotated by the mean position of their block.
    """

    def __init__(self, config: Compression, projection: ResolvedProjection):
        super().__init__()
        self.grid = (config.compression_block, config.compression_stride)
        self.pool_rotated = config.pool_rotated or projection.rotated_entry is None  # then the two are the same
        self.pool = nn.ModuleDict()
        if config.pooling == "mlp":
            for name, shape in projection.entries().items():
                self.pool[name] = BlockMLP(config.compression_block, shape[-1])

    def forward(
        self, queries: Queries, source: Source, context: Context | Step, results: Mapping[str, Attended]
    ) -> Compressed:
        entries = self.pooled(source, context)
        keys = source.projection.expand(entries)
        block, stride = self.grid
        output_BTHV, lse_BTH = compression_attention(
            queries.q,
            keys.k,
            keys.v,
            block=block,
            stride=stride,
            q_rope=queries.rope,
            k_rope=keys.rope,
            scale=queries.scale,
            documents=context.documents,
        )
        return Compressed(output_BTHV, lse_BTH, keys, block, stride, entries)

    def keep(self, buffers: Mapping[str, Slots], source: Source, result: Compressed, step: Step) -> None:
        assert result.entries is not None, "a fresh step pools its own tokens"
        buffers["pooled"].write_first(result.entries)
        if not self.pool_rotated:
            buffers["raw"].append(source.raw, step)

    def cached(
        self,
        queries: Queries,
        source: CachedSource,
        step: Step,
        results: Mapping[str, Attended],
        buffers: Mapping[str, Slots],
    ) -> Compressed:
        self._extend(source, step, buffers)
        pooled, (block, stride) = buffers["pooled"], self.grid
        keys = source.projection.cached_keys(pooled.tensors)
        end_BT = step.once(
            ("blocks", block, stride, pooled.capacity),
            lambda: ((step.positions_BT + 1 - block + stride) // stride).clamp(0, pooled.capacity),
        )
        parts = {"q_rope": queries.rope, "k_rope": keys.rope, "scale": queries.scale}
        output, lse_BTH = cached_attention(queries.q, keys.k, keys.v, step.zeros_BT, end_BT, **parts)
        return Compressed(output, lse_BTH, keys, block, stride)

    def _extend(self, source: CachedSource, step: Step, buffers: Mapping[str, Slots]) -> None:
        """Pool the blocks that end in the new tokens, M at most, and put them in their slots."""
        block, stride = self.grid
        if not self.pool and self.pool_rotated and source.in_place:
            buffers["pooled"].write_means(source.tokens, step, block, stride)
            return
        before, device = block - 1, step.start_B.device
        block_BM, complete_BM = completed(step.start_B, step.n_new_B, step.seq_len, block, stride)
        token_BM1 = (block_BM * stride - (step.start_B - before)[:, None])[..., None]
        token_BML = (token_BM1 + torch.arange(block, device=device)).clamp(0, before + step.seq_len - 1)

        entries = source.recent(before)
        if not self.pool_rotated:
            raw = buffers["raw"]
            entries = entries | source.append(raw, {name: source.raw[name] for name in raw.tensors}, before)
        row_B11 = torch.arange(len(token_BML), device=device)[:, None, None]
        made = {name: self._pool_one(name, x[row_B11, token_BML]) for name, x in entries.items()}
        if not self.pool_rotated:
            made = source.projection.rotate(made, Context((block_BM * stride).float() + (block - 1) / 2))
        buffers["pooled"].write(made, block_BM, complete_BM)

    def _pool_one(self, name: str, x_BML: torch.Tensor) -> torch.Tensor:
        """x [B, M, L, ...] -> [B, M, ...]."""
        if self.pool:
            return self.pool[name](x_BML)
        wide = x_BML if x_BML.dtype == torch.float64 else x_BML.float()
        return wide.mean(2).to(x_BML.dtype)

    def pooled(self, source: Source, context: Context | Step) -> Entries:
        """The pooled entries [B, N, ...], keys rotated: what a cache keeps of them."""
        if self.pool_rotated:
            return self._pool(source.cached, context)
        return source.projection.rotate(self._pool(source.raw, context), context, self.grid)

    def _pool(self, entries: Entries, context: Context | Step) -> Entries:
        block, stride = self.grid
        grid = {"block": block, "stride": stride, "documents": context.documents}
        if not self.pool:
            return dict(zip(entries, mean_pool(list(entries.values()), **grid), strict=True))
        if context.documents is None and block % stride == 0:
            return {name: self.pool[name](x, stride) for name, x in entries.items()}
        return {name: self.pool[name](gather_blocks(x, **grid)) for name, x in entries.items()}
