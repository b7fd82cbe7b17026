"""What a layer keeps of the tokens it has read, so that the tokens after them need not read those again.

Kept are the entries of BLOCKS.md, "Cache": keys and values, or latent and rotary key, of every token that a pattern may
still read, in a ring buffer where that is a bounded number; the pooled entries of compression; and, where queries share
a selection, the latest choice. All memory is taken at once and written in place, so that a step can be a CUDA graph.

Rows of a batch may be of different lengths: row b holds tokens 0 .. length_B[b] - 1. Position p lies in slot p mod
capacity. Legend of the shape suffixes: blocks/base.py; N slots, M blocks that a step may complete.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from zoo.blocks.config import AttentionConfig
from zoo.blocks.cost import kept_tokens, n_slots
from zoo.blocks.parts import Context, Entries, Keys
from zoo.kernels import write_slots
from zoo.kernels.layout import over


@dataclass(eq=False)
class Step(Context):
    """The context of tokens that are appended to a cache: T a row, of which the first n_new_B are real, or all.

    start_B: tokens that each row held before, int64.  fresh: no row held any, so that the new tokens are all there is.
    """

    start_B: torch.Tensor = None
    n_new_B: torch.Tensor | None = None
    fresh: bool = False
    _made: dict = field(default_factory=dict, repr=False)

    @classmethod
    def after(cls, start_B: torch.Tensor, seq_len: int, n_new_B: torch.Tensor | None, fresh: bool) -> "Step":
        """The step that appends seq_len tokens to rows of start_B tokens; where fresh, positions are [1, T]."""
        token_T = torch.arange(seq_len, device=start_B.device)
        positions_BT = token_T[None] if fresh else start_B[:, None] + token_T
        return cls(positions_BT, start_B=start_B, n_new_B=n_new_B, fresh=fresh)

    @property
    def seq_len(self) -> int:
        return self.positions_BT.shape[1]

    @property
    def new_BT(self) -> torch.Tensor | None:
        """Which tokens are real: bool [B, T], or None if all are."""
        if self.n_new_B is None:
            return None
        token_T = torch.arange(self.seq_len, device=self.start_B.device)
        return self.once("new", lambda: token_T < self.n_new_B[:, None])

    def once(self, name: object, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """make(), which depends on nothing but the step and what is in the name; layers that ask again get the same."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def zeros_BT(self) -> torch.Tensor:
        return self.once("zeros", lambda: torch.zeros_like(self.positions_BT))


class Slots:
    """Entries of a bounded number of tokens, or of pooled blocks: tensors [B, capacity, ...] by name."""

    def __init__(self, tensors: Entries):
        self.tensors = tensors
        first = next(iter(tensors.values()))
        self.capacity = first.shape[1]
        self._rows_B1 = torch.arange(first.shape[0], device=first.device)[:, None]

    @classmethod
    def empty(cls, shapes: dict[str, tuple[int, ...]], batch: int, capacity: int, **options) -> "Slots":
        """Zeros, not whatever the memory held: a masked slot has weight 0, and 0 times NaN is NaN."""
        return cls({name: torch.zeros(batch, capacity, *shape, **options) for name, shape in shapes.items()})

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

    def append(self, new: Entries, step: Step) -> None:
        """Put the entries of the tokens of a step."""
        if step.seq_len <= self.capacity:
            self.write(new, step.positions_BT, step.new_BT)
        else:
            n_new = step.seq_len if step.n_new_B is None else step.n_new_B
            self.write_latest(new, step.start_B, step.start_B + n_new)

    def at(self, position_BT: torch.Tensor) -> Entries:
        """The entries at these positions, [B, T, ...]; below 0, or too old to be held: some other entry."""
        slot_BT = position_BT % self.capacity
        return {name: kept[self._rows_B1, slot_BT] for name, kept in self.tensors.items()}

    def rows(self, lo: int, hi: int) -> "Slots":
        return Slots({name: x[lo:hi] for name, x in self.tensors.items()})


class KeyValueCache:
    """One set of keys and values: its tokens, its pooled blocks, and unrotated keys where blocks are pooled from those.

    ring: whether fewer tokens are kept than the rows may have.  lookback: the tokens before a new one that a pattern
    reads by their distance to it, None where none does.
    """

    def __init__(self, tokens: Slots, pooled: Slots | None, raw: Slots | None, ring: bool, lookback: int | None):
        self.tokens, self.pooled, self.raw = tokens, pooled, raw
        self.ring, self.lookback = ring, lookback

    @classmethod
    def empty(cls, config: AttentionConfig, kinds: tuple[str, ...], batch: int, max_len: int, **options):
        """The cache of the patterns `kinds` of a grid point, which share this set."""
        shapes = config.projection.entries()
        kept = {kind: kept_tokens(config.pattern(kind), max_len) for kind in kinds}
        capacity = max(kept.values())
        ring, pooled, raw = capacity < max_len, None, None
        lookback = config.pattern("window").window - 1 if ring and "window" in kinds else None
        if "compression" in kinds:
            compression = config.pattern("compression")
            lookback = max(lookback or 0, compression.compression_block - 1)
            pooled = Slots.empty(shapes, batch, n_slots(max_len, compression.compression_stride), **options)
            if not compression.pool_rotated:
                rotated = {config.projection.rotated_entry: shapes[config.projection.rotated_entry]}
                raw = Slots.empty(rotated, batch, kept["compression"], **options)
        return cls(Slots.empty(shapes, batch, capacity, **options), pooled, raw, ring, lookback)

    def fill(self, cached: Entries, raw: Entries, pooled: Entries | None, step: Step) -> None:
        """Keep what a fresh step has made of its tokens."""
        self.tokens.append(cached, step)
        if self.raw is not None:
            self.raw.append(raw, step)
        if self.pooled is not None:
            for name, kept in self.pooled.tensors.items():
                kept[:, : pooled[name].shape[1]] = pooled[name]

    def parts(self) -> Iterable[Slots]:
        return (part for part in (self.tokens, self.pooled, self.raw) if part is not None)

    def rows(self, lo: int, hi: int) -> "KeyValueCache":
        parts = (part and part.rows(lo, hi) for part in (self.tokens, self.pooled, self.raw))
        return KeyValueCache(*parts, self.ring, self.lookback)


class CachedSource:
    """As `parts.Source`, of tokens that are appended to a cache: their keys, those before them, and the pooled ones.

    Keys come as the cache holds them, so queries of latents must be absorbed (`projection.absorb`).
    """

    def __init__(self, projection: nn.Module, raw: Entries, step: Step, cache: KeyValueCache):
        self.projection, self.cache, self.step = projection, cache, step
        self._recent = self._append(cache.tokens, projection.rotate(raw, step))
        self._recent_raw = self._append(cache.raw, raw) if cache.raw else None

    def _append(self, slots: Slots, new: Entries) -> Entries | None:
        """Append, and return the lookback and the new entries in a row; read first, since new ones may take the place
        of what they look back to. A single token takes that of none, and is read when asked for."""
        step, before = self.step, None
        if step.seq_len > 1 and self.cache.lookback is not None:
            before = slots.at(self._positions(self.cache.lookback)[:, : -step.seq_len])
        slots.append(new, step)
        return before and {name: torch.cat((x, new[name].to(x.dtype)), 1) for name, x in before.items()}

    def _positions(self, before: int) -> torch.Tensor:
        """Those of `before` tokens and the new ones after them."""
        offset = torch.arange(-before, self.step.seq_len, device=self.step.start_B.device)
        return self.step.start_B[:, None] + offset

    @property
    def keys(self) -> Keys:
        """Every slot of the tokens' cache."""
        return self.projection.cached_keys(self.cache.tokens.tensors)

    @property
    def end_BT(self) -> torch.Tensor:
        """One more than each new token's slot, where all tokens are kept."""
        capacity = self.cache.tokens.capacity
        return self.step.once(("end", capacity), lambda: (self.step.positions_BT + 1).clamp(max=capacity))

    @property
    def in_place(self) -> bool:
        """Whether the cache holds all that the new tokens look back to, themselves included."""
        return not self.cache.ring or self.step.seq_len == 1

    @property
    def pooled_keys(self) -> Keys:
        """Every slot of the pooled cache."""
        return self.projection.cached_keys(self.cache.pooled.tensors)

    def recent(self, before: int, rotated: bool = True) -> Entries:
        """Entries [B, before + T, ...] of the positions from start - before on; those below 0 mean nothing."""
        found, slots = (self._recent, self.cache.tokens) if rotated else (self._recent_raw, self.cache.raw)
        if self.step.seq_len == 1:
            return slots.at(self._positions(before))
        return {name: x[:, self.cache.lookback - before :] for name, x in found.items()}


class LayerCache:
    """The cache of one attention layer.

    sets: one for each set of keys and values.  chosen_BKS: the latest choice of blocks, int32, or None.
    """

    def __init__(self, sets: list[KeyValueCache], chosen_BKS: torch.Tensor | None):
        self.sets, self.chosen_BKS = sets, chosen_BKS

    @classmethod
    def empty(cls, config: AttentionConfig, batch: int, max_len: int, device=None, dtype=None) -> "LayerCache":
        """Memory for `batch` rows of up to max_len tokens of a grid point whose defaults are worked out."""
        kinds = tuple(pattern.kind for pattern in config.patterns)
        shared = [(kind,) for kind in kinds] if config.separate_kv else [kinds]
        options = {"device": device, "dtype": dtype}
        sets = [KeyValueCache.empty(config, each, batch, max_len, **options) for each in shared]
        chosen, selection = None, config.pattern("selection")
        if selection and selection.query_group > 1:
            shape = (batch, config.projection.n_kv_heads, selection.n_selected)
            chosen = torch.full(shape, -1, device=device, dtype=torch.int32)
        return cls(sets, chosen)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that the cache holds."""
        kept = [x for one in self.sets for part in one.parts() for x in part.tensors.values()]
        return kept if self.chosen_BKS is None else [*kept, self.chosen_BKS]

    @property
    def dtype(self) -> torch.dtype:
        """That of all entries."""
        return next(iter(self.sets[0].tokens.tensors.values())).dtype

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors occupy."""
        return sum(x.numel() * x.element_size() for x in self.tensors)

    def rows(self, lo: int, hi: int) -> "LayerCache":
        """Rows lo .. hi - 1, in the same memory."""
        chosen = None if self.chosen_BKS is None else self.chosen_BKS[lo:hi]
        return LayerCache([one.rows(lo, hi) for one in self.sets], chosen)

    def keep_choice(self, chosen_BGKS: torch.Tensor, step: Step, query_group: int = 1) -> None:
        """Keep the choice of the last new token of each row; a row without a new token keeps what it had.

        chosen_BGKS: one choice for each run of query_group new tokens.
        """
        if self.chosen_BKS is None:
            return
        if step.n_new_B is None:
            self.chosen_BKS.copy_(chosen_BGKS[:, (step.seq_len - 1) // query_group])
            return
        row_B = torch.arange(len(chosen_BGKS), device=chosen_BGKS.device)
        latest_BKS = chosen_BGKS[row_B, (step.n_new_B - 1).clamp(min=0) // query_group]
        self.chosen_BKS.copy_(torch.where((step.n_new_B > 0)[:, None, None], latest_BKS, self.chosen_BKS))
