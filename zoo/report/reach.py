"""How far information travels through a schedule: layers until the first token can reach the last. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from zoo.blocks.config import AttentionConfig, BlockConfig
from zoo.recipe import ModelConfig


@dataclass(frozen=True)
class Reach:
    """layers: how many, from the bottom, until the last of seq_len tokens can depend on the first; None: never does.

    through: the patterns of the layer that closes the gap.  tokens: how far back the last token can see through the
    whole schedule, its own place included.  unknown: a kind that states no patterns, which makes the rest None.
    """

    layers: int | None
    through: tuple[str, ...] = ()
    tokens: int | None = None
    unknown: str | None = None

    def __str__(self) -> str:
        if self.unknown is not None:
            return f"not known ({self.unknown} states no patterns)"
        if self.layers is None:
            return f"not reached ({self.tokens:,} tokens)"
        return f"{self.layers} ({', '.join(self.through)})" if self.through else str(self.layers)


def reach(model: ModelConfig, seq_len: int) -> Reach:
    """Follow the first token's information upwards, layer by layer, through what each pattern lets a query see.

    A selection that is free to choose counts as seeing every block, for some choice does. Compression sees the first
    token once its first block is complete.
    """
    steps = cache(lambda config, part: list(_steps(config, part, model.d_model)))
    last = 0  # the last token that the first one has reached
    if seq_len == 1:
        return Reach(0, (), 1)
    for layer in model.expanded():
        patterns = steps(layer.config, layer.part)
        if patterns == [None]:
            return Reach(None, unknown=layer.kind)
        reached = {kind: advance(last, seq_len) for kind, advance in patterns}
        if through := tuple(kind for kind, token in reached.items() if token >= seq_len - 1):
            return Reach(layer.index + 1, through, seq_len)
        last = max(last, *reached.values())
    return Reach(None, (), last + 1)


def _steps(config: BlockConfig, part: str | None, d_model: int) -> Iterator:
    """(pattern, function (last reached token, seq_len) -> the last token reached after it); None if not known."""
    if type(config).grid_point is BlockConfig.grid_point:
        yield None
        return
    point = config.grid_point(d_model, part)
    for pattern in point.patterns:
        yield pattern.kind, _ADVANCES[pattern.kind](point)


def _everything(point: AttentionConfig):
    return lambda last, seq_len: seq_len - 1


def _window(point: AttentionConfig):
    width = point.pattern("window").window
    return lambda last, seq_len: last + width - 1


def _compression(point: AttentionConfig):
    block = point.pattern("compression").compression_block
    return lambda last, seq_len: seq_len - 1 if seq_len >= block else last


def _selection(point: AttentionConfig):
    selection = point.pattern("selection")
    if selection.n_init or selection.n_selected > selection.n_local:
        return _everything(point)
    block, n_local = selection.selection_block, selection.n_local
    return lambda last, seq_len: (last // block + n_local) * block - 1


_ADVANCES = {"full": _everything, "window": _window, "compression": _compression, "selection": _selection}
