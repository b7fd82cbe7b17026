"""Which keys a query sees. A pattern is called as pattern(queries, source, context) -> o_BTHV.

Compression returns its log-sum-exp and pooled keys besides, from which selection chooses before it is called.
pattern.cached(queries, source, step) does the same for new tokens and a cache: `source` is a CachedSource, whose keys
are the slots of the cache, and the queries are absorbed into them.
"""

from torch import nn

from zoo.blocks.config import AttentionConfig
from zoo.blocks.patterns.compression import CompressionPattern
from zoo.blocks.patterns.full import FullPattern
from zoo.blocks.patterns.selection import SelectionPattern
from zoo.blocks.patterns.window import WindowPattern

_CLASSES = {
    "full": FullPattern,
    "window": WindowPattern,
    "compression": CompressionPattern,
    "selection": SelectionPattern,
}


def build_patterns(config: AttentionConfig) -> nn.ModuleDict:
    """The patterns of a grid point, by kind, in the order of the config."""
    return nn.ModuleDict(
        {pattern.kind: _CLASSES[pattern.kind](pattern, config.projection) for pattern in config.patterns}
    )
