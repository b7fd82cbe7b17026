"""How far information travels through a schedule: layers until the first token can reach the last. No torch."""

from dataclasses import dataclass

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
    known = 1  # bit t: token t depends on the first one
    read: dict[int, int] = {}  # what layers that share keys and values made them of, by the layer that did
    if seq_len == 1:
        return Reach(0, (), 1)
    for layer in model.expanded():
        of_keys = known if layer.kv_layer is None else read.setdefault(layer.kv_layer, known)
        reached = layer.mixer.reach(of_keys, seq_len)
        if reached is None:
            return Reach(None, unknown=layer.kind)
        if through := tuple(kind for kind, tokens in reached.items() if tokens >> (seq_len - 1) & 1):
            return Reach(layer.index + 1, through, seq_len)
        for tokens in reached.values():
            known |= tokens & ((1 << seq_len) - 1)
    return Reach(None, (), known.bit_length())
