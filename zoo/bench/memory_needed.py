"""The memory that prefill and decoding will need in addition to the weights, estimated from a recipe. No torch."""

from zoo.blocks.cost import BF16
from zoo.counting.cache_sizes import cache_sizes
from zoo.recipe import ModelConfig


def bytes_needed(model: ModelConfig, max_len: int, batch: int, rows_at_once: int, bytes_per_element: int) -> int:
    """Bytes of the cache, exactly, and of the tensors of one layer while rows_at_once rows are read, about.

    Of a layer everything is counted that a training step would keep, which is more than lives at one time; nothing of a
    block of another package that does not state it.
    """
    cache = batch * sum(size.held_bytes for size in cache_sizes(model, max_len, bytes_per_element).values())
    layers = model.expanded()
    widest = max(mixer.activation_bytes(max_len) or 0 for mixer in {layer.mixer for layer in layers})
    ffn = max(each.activation_bytes(model.d_model) for each in {layer.feed_forward for layer in layers})
    tokens = rows_at_once * max_len
    around = bytes_per_element * tokens * (2 * model.d_model + ffn // BF16)
    return cache + around + rows_at_once * widest * bytes_per_element // BF16
