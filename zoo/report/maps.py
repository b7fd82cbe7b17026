"""Attention maps: which keys each query sees, read off a block's own forward pass.

The values of a block are replaced by unit vectors, one for each key: its output is then the attention weights
themselves, and a key is seen where its weight is above zero. Nothing of a mask is written down a second time here.
"""

import contextlib
import copy
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from torch import nn

from zoo.blocks.base import Attention, Context
from zoo.blocks.config import BlockConfig
from zoo.blocks.parts import Source
from zoo.blocks.resolved import ResolvedMixer
from zoo.errors import ZooError
from zoo.kernels.dispatch import use_implementation
from zoo.report.colours import of_patterns
from zoo.report.drawing import INK, STYLE, as_svg

FEWEST, THUMBNAIL = 64, 2048  # tokens of a thumbnail: NSA with the defaults of its paper selects 1,024


class UnitValues(nn.Module):
    """A projection whose values are unit vectors: v of key n is 1 at n // tile, 0 elsewhere; the rest is as it was.

    tile: of the `seq_len` keys that are tokens; pooled keys are told apart.
    """

    def __init__(self, projection: nn.Module, seq_len: int, tile: int):
        super().__init__()
        self.inner, self.seq_len, self.tile = projection, seq_len, tile
        self.forward, self.rotate = projection.forward, projection.rotate

    def tile_of(self, n_keys: int) -> int:
        """How many of so many keys share a unit vector."""
        return self.tile if n_keys == self.seq_len else 1

    def expand(self, entries):
        keys = cast(Any, self.inner).expand(entries)
        batch, n_keys, n_kv_heads = keys.k.shape[:3]
        tile = self.tile_of(n_keys)
        unit_MM = torch.eye(-(-n_keys // tile), dtype=keys.k.dtype, device=keys.k.device)
        unit_NM = unit_MM.repeat_interleave(tile, 0)[:n_keys]
        return keys._replace(v=unit_NM[None, :, None].expand(batch, -1, n_kv_heads, -1).contiguous())


@torch.no_grad()
def visibility(block: nn.Module, x_BTC: torch.Tensor, context: Context, tile: int = 1) -> dict[str, torch.Tensor]:
    """pattern -> [T, T], the share of the heads in which query t (row) sees key s (column), float32 in [0, 1].

    block: an `Attention` (every kind of the zoo).  x_BTC: its input, B = 1; it decides what selection chooses.
    A compression block counts as seeing each of its tokens.  tile: so many keys side by side count as one, seen if any
    of them is; narrower values make long maps that much quicker.  Raises ZooError for a block that is no `Attention`.
    """
    if not isinstance(block, Attention):
        raise ZooError(f"no attention map: {type(block).__name__} is not made of patterns (zoo.blocks.base.Attention)")
    probe = copy.copy(block)
    probe._modules = dict(block._modules)  # the block itself keeps its projection
    seq_len = x_BTC.shape[1]
    probe.projection = UnitValues(block.projection, seq_len, tile)
    if block.config.follows:
        context = _with_unit_values(block, x_BTC, context, tile)
    with use_implementation("reference"):
        weights = probe.attend(x_BTC, context)
    found = {}
    for pattern, weight_BTHN in zip(block.config.patterns, weights, strict=True):
        seen_THN = weight_BTHN[0] > 0
        tokens = pattern.tokens_of_keys(seq_len)
        if tokens is None:
            seen_THN = seen_THN.repeat_interleave(tile, 2)[..., :seq_len]
        else:
            seen_THN = seen_THN.repeat_interleave(probe.projection.tile_of(len(tokens)), 2)
            seen_THN = _tokens_of(seen_THN, seq_len, tokens)
        found[pattern.kind] = seen_THN.float().mean(1)
    return found


def _with_unit_values(block: Attention, x_BTC: torch.Tensor, context: Context, tile: int) -> Context:
    """The context of a block that reads the keys of an earlier layer, whose values are then unit vectors."""
    assert block.kv_layer is not None, "it follows a layer"
    own, sources = context.for_another_model(), []
    for source in context.shared(block.kv_layer):
        projection: Any = UnitValues(copy.deepcopy(source.projection).to(x_BTC.dtype), x_BTC.shape[1], tile)
        raw = {name: x.to(x_BTC.dtype) for name, x in source.raw.items()}
        sources.append(Source(projection, raw, own))
    own.share(block.kv_layer, sources)
    return own


def _tokens_of(seen_THN: torch.Tensor, seq_len: int, tokens: list[range]) -> torch.Tensor:
    """[T, H, N] over keys, each of which stands for some tokens -> [T, H, seq_len] over the tokens."""
    seen_THS = seen_THN.new_zeros(*seen_THN.shape[:2], seq_len)
    for key, of_key in enumerate(tokens):
        seen_THS[..., of_key.start : of_key.stop] |= seen_THN[..., key, None]
    return seen_THS


def random_visibility(
    config: BlockConfig | ResolvedMixer, part: str | None, d_model: int, seq_len: int, seed: int = 0, tile: int = 1
) -> dict[str, torch.Tensor]:
    """`visibility` of a freshly made block on a random input: what selection chooses then means nothing."""
    generator = torch.Generator().manual_seed(seed)
    mixer = config.resolve(d_model, part=part)
    point = mixer.attention
    if point is not None and point.follows:
        mixer = replace(point, follows=False)  # random keys are as good as those of an earlier layer
    block = mixer.build()
    for parameter in block.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    x_BTC = torch.randn(1, seq_len, d_model, generator=generator)
    return visibility(block, x_BTC, Context.for_tokens(1, seq_len), tile)


def draw(found: dict[str, torch.Tensor], title: str, panel_inches: float = 3.2, step: int = 1) -> Figure:
    """One panel a pattern: queries downwards, keys to the right; darker where more heads see the key.

    step: draw every step-th query and key.
    """
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(panel_inches * len(found), panel_inches + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle(title, fontsize=10)
        for panel, (kind, seen_TT) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
            (colour,) = of_patterns([kind])
            colours = LinearSegmentedColormap.from_list(kind, [to_rgba(colour, 0.0), to_rgba(colour)])
            end = len(seen_TT) - 0.5
            look = {"cmap": colours, "vmin": 0, "vmax": 1, "interpolation": "nearest", "resample": False}
            panel.imshow(seen_TT[::step, ::step].numpy(), extent=(-0.5, end, end, -0.5), **look)
            panel.set(title=kind, xlabel="key", ylabel="query" if panel is figure.axes[0] else "")
        return figure


def thumbnail(
    config: BlockConfig, part: str | None, d_model: int, seq_len: int | None = None, titled: bool = True
) -> str:
    """The map of a block on random input as <svg>, or a sentence that says why there is none.

    seq_len: tokens; default: those at which the block's patterns show.  titled: whether they are said above the map.
    """
    try:
        mixer = config.resolve(d_model, part=part)
        extent = _extent(mixer)
        seq_len = seq_len or min(THUMBNAIL, max(FEWEST, extent))
        tile = max(1, seq_len // 256)  # a panel has about as many pixels
        found = random_visibility(_one_head(mixer), None, d_model, seq_len, tile=tile)
    except Exception as error:  # a block of another package can raise anything
        from html import escape

        return f"<p class=failed>{escape(str(error))}</p>"
    name = f"map-{config.kind}-{part or 'all'}-{zlib.crc32(repr(config).encode()):08x}"
    with rc_context(STYLE | {"axes.spines.right": True, "axes.spines.top": True, "svg.hashsalt": name}):
        about = f"{seq_len:,} tokens" + (", all within its reach" if extent >= 2 * seq_len else "")
        return as_svg(draw(found, about if titled else "", 2.2, tile), name).replace(INK, "currentColor")


def common_length(blocks: Iterable[tuple[BlockConfig, str | None, int]]) -> int:
    """Tokens, at most THUMBNAIL, at which the patterns of all blocks show: those that the widest of them needs.

    blocks: (config, part, d_model) of each.  A block whose patterns cannot be asked for counts as needing the fewest.
    """
    longest = FEWEST
    for config, part, d_model in blocks:
        with contextlib.suppress(Exception):  # a block of another package can raise anything; its map says why
            longest = max(longest, min(THUMBNAIL, _extent(config.resolve(d_model, part=part))))
    return longest


def _one_head(mixer: ResolvedMixer) -> ResolvedMixer:
    """The block with a single head, which is enough for a thumbnail and 16 times quicker than 16 of them."""
    if mixer.attention is None or mixer.attention is not mixer:
        return mixer
    projection = mixer.attention.projection
    heads: dict[str, Any] = {
        name: 1 for name in ("n_heads", "n_kv_heads", "n_latent_heads") if hasattr(projection, name)
    }
    return replace(mixer.attention, projection=replace(projection, **heads))


def _extent(mixer: ResolvedMixer) -> int:
    """Tokens in which the patterns show: twice what any of them reads; 0 where any number will do."""
    return 2 * max((pattern.span for pattern in mixer.attention.patterns), default=0) if mixer.attention else 0


def save(figure: Figure, path: Path) -> None:
    """Write a figure as its file's ending says: svg, png or pdf. Raises ZooError for another."""
    writers: dict[str, Callable] = {
        ".svg": lambda: figure.savefig(path, metadata={"Date": None}),
        ".png": lambda: figure.savefig(path, dpi=160),
        ".pdf": lambda: figure.savefig(path, metadata={"CreationDate": None}),
    }
    if path.suffix.lower() not in writers:
        raise ZooError(f"{path}: must end in {', '.join(writers)}; found {path.suffix or 'no ending'}")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "zoo"}):
        writers[path.suffix.lower()]()
