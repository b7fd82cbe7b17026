"""What a generation took: tokens, seconds, and bytes of the cache by kind of layer."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from zoo.counting.cache_sizes import cache_sizes, kind_of
from zoo.model.cache import ModelCache
from zoo.recipe import ModelConfig

MIB = 2**20


@dataclass(frozen=True)
class CacheBytes:
    """The cache of the layers of one kind, over all rows: `nominal` by arithmetic, `held` what its tensors occupy."""

    layers: int
    nominal: int
    held: int


@dataclass
class Stats:
    """Filled while a generation runs; seconds are those of the wall clock, the consumer's share included.

    first_token_s: from the start until the first token of every row was on the host: prefill, and on CUDA the
    compilation of kernels that this process has not used before.  decode_s: from there to the last token.
    room: tokens that each row of the cache has memory for.
    """

    rows: int
    room: int
    prompt_tokens: int
    cache: dict[str, CacheBytes] = field(default_factory=dict)
    new_tokens: int = 0
    first_token_s: float = 0.0
    decode_s: float = 0.0
    cuda_graph: bool = False

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prompt_tokens / self.first_token_s if self.first_token_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Of all rows together, the first token of each left out; 0 where there was no other."""
        later = self.new_tokens - self.rows
        return later / self.decode_s if later > 0 and self.decode_s else 0.0

    @property
    def held_bytes(self) -> int:
        return sum(kind.held for kind in self.cache.values())

    @property
    def nominal_bytes(self) -> int:
        return sum(kind.nominal for kind in self.cache.values())

    def as_dict(self) -> dict[str, Any]:
        """All numbers as plain data."""
        rates = ("prefill_tokens_per_s", "decode_tokens_per_s", "nominal_bytes", "held_bytes")
        return {**asdict(self), **{name: getattr(self, name) for name in rates}}

    def text(self) -> str:
        """The lines that `zoo generate --stats` prints."""
        graph = ", as a CUDA graph" if self.cuda_graph else ""
        lines = [
            f"prefill:  {self.prompt_tokens:,} tokens, {self.prefill_tokens_per_s:,.0f} tokens/s",
            f"decode:   {self.new_tokens:,} tokens, {self.decode_tokens_per_s:,.0f} tokens/s{graph}",
            f"first token after {1e3 * self.first_token_s:,.1f} ms",
            f"cache of {self.rows} x {self.room:,} tokens, bytes per token and in all:",
        ]
        total = CacheBytes(sum(kind.layers for kind in self.cache.values()), self.nominal_bytes, self.held_bytes)
        for name, kind in {**self.cache, "all": total}.items():
            nominal, held = (self._size(value) for value in (kind.nominal, kind.held))
            lines.append(f"  {name:14} {kind.layers:3} layers   nominal {nominal}   allocated {held}")
        return "\n".join(lines)

    def _size(self, n_bytes: int) -> str:
        return f"{n_bytes / (self.rows * self.room):10,.1f} = {n_bytes / MIB:,.2f} MiB"


def cache_bytes(model: ModelConfig, cache: ModelCache, dtype: torch.dtype) -> dict[str, CacheBytes]:
    """The cache of a model by kind of layer: nominal counted for entries of this dtype, held measured."""
    held: Counter[str] = Counter()
    for layer, n_bytes in zip(model.expanded(), cache.layer_nbytes, strict=True):
        held[kind_of(layer)] += n_bytes
    return {
        kind: CacheBytes(size.layers, cache.batch * size.nominal_bytes, held[kind])
        for kind, size in cache_sizes(model, cache.max_len, dtype.itemsize).items()
    }
