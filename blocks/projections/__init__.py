"""How queries, keys and values are made, and what is cached of them.

Every projection has these methods, so that a pattern need not know which one it serves:

    forward(x_BTC, context) -> Queries, [Entries] queries rotated; entries one a set of keys and values, not yet rotated
    rotate(entries, context, blocks) -> Entries what a cache keeps; `blocks` for the entries of a compression grid
    expand(entries) -> Keys                     what attention reads

and four for reading a cache as it is, which for latents never makes keys and values (DeepSeek-V2, section 2.1.2):

    absorb(queries) -> Queries                  q . (W c) = (W^T q) . c, so W_UK is applied to the queries
    cached_keys(entries) -> Keys                entries read as keys and values, of J heads
    lift(o) -> o_BTHV                           W_UV, after the sum over latents
    renew()                                     at the first tokens of a cache: weights may have changed unnoticed

The maps of a projection that read x are one, `input`, whose result is cut afterwards: in a decoding step each product
takes 4 us on an H200, where its weights take 0.7 us to read (docs/log.md). The pieces are views: a row of one is as far
from the next as in the whole.
"""

from torch import nn

from zoo.blocks.config import AttentionConfig
from zoo.blocks.projections.gqa import GQAProjection
from zoo.blocks.projections.latent import LatentProjection

_CLASSES = {"gqa": GQAProjection, "mla": LatentProjection, "gla": LatentProjection}


def build_projection(config: AttentionConfig, d_model: int) -> nn.Module:
    """The projection of a grid point."""
    return _CLASSES[config.projection.kind](config.projection, d_model, config.n_kv_sets)
