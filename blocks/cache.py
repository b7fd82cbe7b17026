"""What an attention layer keeps of the tokens it has read, so that later tokens need not read them again.

Kept are the entries of every token that a pattern may still read (keys and values, or latent and rotary key), in a ring
buffer if that is a bounded number, and the buffers of each pattern's own (docs/blocks.md, "Cache"). All memory is
allocated at once and written in place, so that a step can be a CUDA graph. Only the methods of `Slots` write to it.

Rows of a batch may be of different lengths: row b holds tokens 0 .. length_B[b] - 1. Position p lies in slot p mod
capacity. Legend of the shape suffixes: blocks/base.py; N slots, M blocks that a step may complete.
"""

import torch

from zoo.blocks.context import Step
from zoo.blocks.interface import Projection
from zoo.blocks.parts import Entries, Keys
from zoo.blocks.patterns.base import Buffer
from zoo.blocks.resolved import ResolvedAttention
from zoo.kernels import pool_slots, write_slots
from zoo.kernels.layout import over

__all__ = ["AttentionCache", "CachedSource", "Slots", "Step", "TokenCache"]


class Slots:
    """Slots of tensors [B, capacity, ...] by name: entries of tokens or of pooled blocks, or a choice."""

    def __init__(self, tensors: Entries):
        self.tensors = tensors
        first = next(iter(tensors.values()))
        self.capacity = first.shape[1]
        self._rows_B1 = torch.arange(first.shape[0], device=first.device)[:, None]

    @classmethod
    def empty(cls, shapes: dict[str, tuple[int, ...]], batch: int, capacity: int, fill: int = 0, **options) -> "Slots":
        """Filled, not whatever the memory held: a masked slot has weight 0, and 0 times NaN is NaN."""
        return cls({name: torch.full((batch, capacity, *shape), fill, **options) for name, shape in shapes.items()})

    @classmethod
    def of(cls, buffer: Buffer, batch: int, device: torch.device | None, dtype: torch.dtype | None) -> "Slots":
        """The memory that a pattern asks for; dtype: of the cache."""
        kept = dtype if buffer.dtype is None else getattr(torch, buffer.dtype)
        kept = torch.get_default_dtype() if kept is None else kept
        return cls.empty(dict(buffer.shapes), batch, buffer.capacity, buffer.fill, device=device, dtype=kept)

    def write(self, new: Entries, position_BT: torch.Tensor, wanted_BT: torch.Tensor | None) -> None:
        """Put new [B, T, ...] at consecutive positions, T <= capacity; leave alone what is not wanted."""
        write_slots(list(self.tensors.values()), [new[name] for name in self.tensors], position_BT, wanted_BT)

    def write_latest(self, new: Entries, start_B: torch.Tensor, end_B: torch.Tensor) -> None:
        """Put new [B, T, ...], positions start_B on, of which those up to end_B are wanted; T may exceed capacity."""
        slot_N = torch.arange(self.capacity, device=end_B.device)
        position_BN = end_B[:, None] - 1 - (end_B[:, None] - 1 - slot_N) % self.capacity  # the latest of each slot
        token_BN = position_BN - start_B[:, None]
        for name, kept in self.tensors.items():
            x = new[name][self._rows_B1, token_BN.clamp(min=0)].to(kept.dtype)
            kept.copy_(torch.where(over(token_BN >= 0, x), x, kept))

    def write_first(self, new: Entries) -> None:
        """Put new [B, N, ...] in the first N slots."""
        for name, kept in self.tensors.items():
            kept[:, : new[name].shape[1]] = new[name]

    def write_means(self, tokens: "Slots", step: Step, block: int, stride: int) -> None:
        """Put the mean of each block of tokens that ends in the new tokens of a step in the block's slot."""
        kept = list(tokens.tensors.values()), list(self.tensors.values())
        pool_slots(*kept, step.start_B, step.n_new_B, step.seq_len, block=block, stride=stride)

    def replace(self, new: Entries, wanted_B: torch.Tensor | None = None) -> None:
        """Put new [B, capacity, ...] in all slots of each row, or of the wanted rows."""
        for name, kept in self.tensors.items():
            x = new[name]
            kept.copy_(x if wanted_B is None else torch.where(wanted_B.view(-1, *[1] * (x.dim() - 1)), x, kept))

    def append(self, new: Entries, step: Step) -> None:
        """Put the entries of the tokens of a step."""
        if step.seq_len <= self.capacity:
            self.write(new, step.positions_BT, step.new_BT)
        else:
            n_new = step.seq_len if step.n_new_B is None else step.n_new_B
            self.write_latest(new, step.start_B, step.start_B + n_new)

    def reorder(self, source_B: torch.Tensor) -> None:
        """Row b becomes a copy of row source_B[b]."""
        for kept in self.tensors.values():
            kept.copy_(kept.index_select(0, source_B.to(kept.device)))

    def at(self, position_BT: torch.Tensor) -> Entries:
        """The entries at these positions, [B, T, ...]; below 0, or too old to be held: some other entry."""
        slot_BT = position_BT % self.capacity
        return {name: kept[self._rows_B1, slot_BT] for name, kept in self.tensors.items()}

    def rows(self, lo: int, hi: int) -> "Slots":
        return Slots({name: x[lo:hi] for name, x in self.tensors.items()})


class TokenCache:
    """The tokens of one set of keys and values.

    ring: whether fewer tokens are kept than the rows may have.  lookback: tokens before a new one that a pattern reads
    by their distance to it; None if none does.
    """

    def __init__(self, tokens: Slots, ring: bool, lookback: int | None):
        self.tokens, self.ring, self.lookback = tokens, ring, lookback

    @classmethod
    def empty(cls, point: ResolvedAttention, kinds: tuple[str, ...], batch: int, max_len: int, **options):
        """The tokens that the patterns `kinds` of a block may read, which share this set."""
        patterns = [pattern for pattern in point.patterns if pattern.kind in kinds]
        capacity = max(pattern.kept_tokens(max_len) for pattern in patterns)
        ring = capacity < max_len
        lookbacks = [before for pattern in patterns if (before := pattern.lookback(ring)) is not None]
        tokens = Slots.empty(point.projection.entries(), batch, capacity, **options)
        return cls(tokens, ring, max(lookbacks, default=None))

    def rows(self, lo: int, hi: int) -> "TokenCache":
        return TokenCache(self.tokens.rows(lo, hi), self.ring, self.lookback)


class CachedSource:
    """As `parts.Source`, of tokens that are appended to a cache: their keys and those before them.

    Keys come as the cache holds them, so queries of latents must be absorbed (`Projection.absorb`).
    """

    def __init__(self, projection: Projection, raw: Entries, step: Step, cache: TokenCache):
        self.projection, self.raw, self.step = projection, raw, step
        self.tokens, self.ring, self._lookback = cache.tokens, cache.ring, cache.lookback
        rotated = projection.rotate(raw, step)
        self._recent: Entries = {}
        if step.seq_len == 1 or cache.lookback is None:
            self.tokens.append(rotated, step)
        else:
            self._recent = self.append(self.tokens, rotated, cache.lookback)

    def append(self, slots: Slots, new: Entries, before: int) -> Entries:
        """Append the entries of the new tokens; return those of `before` tokens before them, then theirs, in a row.

        The old ones are read first, because new ones may take their place. A single token takes the place of none.
        """
        if self.step.seq_len == 1:
            slots.append(new, self.step)
            return slots.at(self._positions(before))
        old = slots.at(self._positions(before)[:, : -self.step.seq_len])
        slots.append(new, self.step)
        return {name: torch.cat((x, new[name].to(x.dtype)), 1) for name, x in old.items()}

    def _positions(self, before: int) -> torch.Tensor:
        """Those of `before` tokens and the new ones after them."""
        offset = torch.arange(-before, self.step.seq_len, device=self.step.start_B.device)
        return self.step.start_B[:, None] + offset

    @property
    def dtype(self) -> torch.dtype:
        """That of the cache."""
        return next(iter(self.tokens.tensors.values())).dtype

    @property
    def keys(self) -> Keys:
        """Every slot of the tokens' cache."""
        return self.projection.cached_keys(self.tokens.tensors)

    @property
    def end_BT(self) -> torch.Tensor:
        """One more than each new token's slot, where all tokens are kept."""
        capacity = self.tokens.capacity
        return self.step.once(("end", capacity), lambda: (self.step.positions_BT + 1).clamp(max=capacity))

    @property
    def in_place(self) -> bool:
        """Whether the cache holds all that the new tokens look back to, themselves included."""
        return not self.ring or self.step.seq_len == 1

    def recent(self, before: int) -> Entries:
        """Entries [B, before + T, ...] of the positions from start - before on; those below 0 mean nothing."""
        if self.step.seq_len == 1:  # read when asked for, which a pattern that reads slots never does
            return self.tokens.at(self._positions(before))
        assert self._lookback is not None, "the pattern's config states how far it looks back"
        return {name: x[:, self._lookback - before :] for name, x in self._recent.items()}


class AttentionCache:
    """The cache of one attention layer (`blocks.interface.LayerCache`).

    sets: one for each set of keys and values.  buffers: what each pattern keeps in addition, by kind and name.
    """

    def __init__(self, sets: list[TokenCache], buffers: dict[str, dict[str, Slots]]):
        self.sets, self.buffers = sets, buffers

    @classmethod
    def empty(cls, point: ResolvedAttention, batch: int, max_len: int, device=None, dtype=None) -> "AttentionCache":
        """Memory for `batch` rows of up to max_len tokens of a block whose numbers are all known.

        None for a layer that reads the keys and values of an earlier one.
        """
        if point.follows:
            return cls([], {pattern.kind: {} for pattern in point.patterns})
        kinds = tuple(pattern.kind for pattern in point.patterns)
        shared = [(kind,) for kind in kinds] if point.separate_kv else [kinds]
        options = {"device": device, "dtype": torch.get_default_dtype() if dtype is None else dtype}
        sets = [TokenCache.empty(point, each, batch, max_len, **options) for each in shared]
        buffers = {
            pattern.kind: {
                name: Slots.of(buffer, batch, device, dtype)
                for name, buffer in pattern.buffers(point.projection, max_len).items()
            }
            for pattern in point.patterns
        }
        return cls(sets, buffers)

    @property
    def _slots(self) -> list[Slots]:
        own = [slots for of_pattern in self.buffers.values() for slots in of_pattern.values()]
        return [*(one.tokens for one in self.sets), *own]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that the cache holds."""
        return [x for slots in self._slots for x in slots.tensors.values()]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors occupy."""
        return sum(x.numel() * x.element_size() for x in self.tensors)

    def rows(self, lo: int, hi: int) -> "AttentionCache":
        """Rows lo .. hi - 1, in the same memory."""
        buffers = {
            kind: {name: slots.rows(lo, hi) for name, slots in own.items()} for kind, own in self.buffers.items()
        }
        return AttentionCache([one.rows(lo, hi) for one in self.sets], buffers)

    def reorder(self, source_B: torch.Tensor) -> None:
        """Row b becomes a copy of what row source_B[b] held."""
        for slots in self._slots:
            slots.reorder(source_B)
