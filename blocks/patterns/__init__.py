"""Which keys a query sees. A pattern is called as pattern(queries, source, context, compressed) -> o_BTHV.

`compressed` is what the compression pattern of the same block found, from which selection takes its scores.
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
    entries = config.projection.entries()
    return nn.ModuleDict({pattern.kind: _CLASSES[pattern.kind](pattern, entries) for pattern in config.patterns})
