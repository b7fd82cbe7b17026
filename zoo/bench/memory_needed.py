"""The memory that prefill and decoding will need beside the weights, estimated from a recipe. No torch."""

from zoo.blocks.config import BlockConfig
from zoo.blocks.cost import BF16
from zoo.cache_sizes import cache_sizes
from zoo.recipe import ModelConfig


def bytes_needed(model: ModelConfig, max_len: int, batch: int, rows_at_once: int, bytes_per_element: int) -> int:
    """Bytes of the cache, exactly, and of the tensors of one layer while rows_at_once rows are read, about.

    Of a layer everything is counted that a training step would keep, which is more than lives at one time.
    """
    cache = batch * sum(size.held_bytes for size in cache_sizes(model, max_len, bytes_per_element).values())
    widest = max(_attention(model, config, part, max_len) for config, part in _distinct(model))
    tokens = rows_at_once * max_len
    around = bytes_per_element * tokens * (4 * model.d_model + 3 * model.ffn.d_ff)
    return cache + around + rows_at_once * widest * bytes_per_element // BF16


def _distinct(model: ModelConfig) -> dict[tuple[BlockConfig, str | None], None]:
    return dict.fromkeys((layer.config, layer.part) for layer in model.expanded())


def _attention(model: ModelConfig, config: BlockConfig, part: str | None, seq_len: int) -> int:
    """Bytes of an attention layer on one row in bf16; 0 where a block of another package does not say."""
    return config.resolve(model.d_model, model.max_seq_len, part).activation_bytes(seq_len) or 0
