"""Attention blocks: a projection (how queries, keys and values are made) and patterns (which keys a query sees).

The config half (config.py, fields.py, cost.py, resolved.py, registry.py, kinds/, the `_config` and base modules of
patterns/ and projections/) imports no torch; `build` imports the torch half.
"""

from zoo.blocks.plugins import load_plugin
from zoo.blocks.registry import block_kinds, broken, config_class, register

__all__ = ["block_kinds", "broken", "build", "config_class", "load_plugin", "register"]


def build(config, d_model: int, part: str | None = None):
    """The torch module of one layer: `forward(x_BTC, context) -> y_BTC`, residual projection in `.output`.

    config: a BlockConfig.  part: which part of a block that has several, such as "local" of ansa; None otherwise.
    Raises ValueError if the config cannot be built for d_model or has no such part.
    """
    return config.build(d_model, part)
