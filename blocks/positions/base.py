"""What a position embedding says of itself without torch: whether and how it turns queries and keys.

A position embedding acts on queries and keys before their product: each pair of channels is turned by an angle, and may
be scaled, by the token's position. It is two classes: the config (`PositionConfig`), and what makes the tables of cos
and sin (`blocks.interface.Positions`), named by `module`.
"""

from typing import Any, ClassVar

from zoo.blocks.checked import NUMBER, Fact, Facts, Kinded
from zoo.blocks.making import make


class PositionConfig(Kinded):
    """A position embedding of a block."""

    module: ClassVar[str | None] = None  # "package.module:Class" of what makes the tables; None: nothing is turned
    keys_differ: ClassVar[bool] = False  # whether keys have a table of their own (`table(..., keys=True)`)

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are turned at all."""
        return self.module is not None

    @property
    def shown(self) -> float | str:
        """What a comparison of models shows of it."""
        return self.kind

    @property
    def score_factor(self) -> float:
        """What the default softmax scale of a latent projection is multiplied by."""
        return 1.0

    @property
    def values(self) -> tuple:
        """What tables depend on, as plain numbers: layers with the same share a table; torch.compile hashes it."""
        return tuple(getattr(self, name) for name in type(self).model_fields)

    def facts(self, d_model: int, seq_len: int, part: str | None = None) -> Facts:
        """What a position embedding of another package is asked for."""
        yield Fact("shown", lambda: self.shown, (str, *NUMBER))
        yield Fact("values", lambda: self.values, (tuple,))

    def build(self) -> Any:
        """What makes the tables (`blocks.interface.Positions`); None if nothing is turned. Imports torch."""
        if self.module is None:
            return None
        return make(f"position embedding {self.kind!r}", self.module, self, needs=("table",))
