"""The memory that reading and decoding need in addition to the weights, counted from a recipe. No torch."""

from zoo.blocks.cost import BF16
from zoo.counting.cache_sizes import cache_sizes
from zoo.recipe import ModelConfig


def bytes_needed(model: ModelConfig, max_len: int, batch: int, rows_at_once: int, bytes_per_element: int) -> int:
    """Bytes of the cache of `batch` rows, and of what lives while rows_at_once of them are read."""
    cache = batch * cache_row_bytes(model, max_len, bytes_per_element)
    return cache + rows_at_once * reading_row_bytes(model, max_len, bytes_per_element)


def cache_row_bytes(model: ModelConfig, max_len: int, bytes_per_element: int) -> int:
    """Bytes of the cache of one row of max_len tokens, exactly."""
    return sum(size.held_bytes for size in cache_sizes(model, max_len, bytes_per_element).values())


def reading_row_bytes(model: ModelConfig, seq_len: int, bytes_per_element: int) -> int:
    """Bytes of the tensors of one layer while a row of seq_len tokens is read without a gradient, about.

    Of a layer everything is counted that a training step would keep, which is more than lives at one time; nothing of a
    block of another package that does not state it, and nothing of what a kernel holds while it runs.
    """
    layers = model.expanded()
    widest = max(mixer.activation_bytes(seq_len) or 0 for mixer in {layer.mixer for layer in layers})
    ffn = max(each.activation_bytes(model.d_model) for each in {layer.feed_forward for layer in layers})
    around = bytes_per_element * seq_len * (2 * model.d_model + ffn // BF16)
    return around + widest * bytes_per_element // BF16
