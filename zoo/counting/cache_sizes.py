"""The cache by kind of layer, counted from a recipe alone. No torch."""

from collections import Counter
from dataclasses import dataclass

from zoo.counting.model_cost import BYTES_PER_ELEMENT
from zoo.recipe import LayerConfig, ModelConfig


@dataclass(frozen=True)
class CacheSize:
    """What the layers of one kind keep of one row of `seq_len` tokens, in bytes.

    nominal_bytes: keys and values, or latent and rotary key, of every token, as papers count.  held_bytes: what the
    cache tensors occupy, with ring buffers and pooled entries.
    """

    layers: int
    seq_len: int
    nominal_bytes: int
    held_bytes: int

    @property
    def nominal_bytes_per_token(self) -> float:
        return self.nominal_bytes / self.seq_len

    @property
    def held_bytes_per_token(self) -> float:
        """Averaged over the row: that of a ring buffer falls as the row grows."""
        return self.held_bytes / self.seq_len

    def __add__(self, other: "CacheSize") -> "CacheSize":
        nominal, held = self.nominal_bytes + other.nominal_bytes, self.held_bytes + other.held_bytes
        return CacheSize(self.layers + other.layers, self.seq_len, nominal, held)


def kind_of(layer: LayerConfig) -> str:
    """`ansa.local`: the kind of a layer's block, with its part if it has parts."""
    return f"{layer.kind}.{layer.part}" if layer.part else layer.kind


def cache_sizes(model: ModelConfig, seq_len: int, bytes_per_element: int = BYTES_PER_ELEMENT) -> dict[str, CacheSize]:
    """The cache of one row by kind of layer, in the order of first use.  Raises ValueError if seq_len is below 1."""
    counts = Counter((kind_of(layer), layer.mixer) for layer in model.expanded())
    sizes: dict[str, CacheSize] = {}
    for (kind, mixer), times in counts.items():
        cost = mixer.cost(seq_len)
        nominal, held = bytes_per_element * cost.cache_nominal_elements, cost.cache_held_bytes(bytes_per_element)
        size = CacheSize(times, seq_len, times * nominal, times * held)
        sizes[kind] = sizes[kind] + size if kind in sizes else size
    return sizes
