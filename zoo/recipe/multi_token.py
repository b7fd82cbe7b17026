"""`model.multi_token`: modules that predict the tokens after the next one, for training only. No torch.

zoo/model/multi_token.py computes them.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from zoo.blocks.checked import Checked, FieldProblem
from zoo.errors import unknown
from zoo.recipe import schedule

if TYPE_CHECKING:
    from zoo.recipe.config import ModelConfig

NORMS = 3  # of a module, apart from those of its layer: of the hidden state, of the embedding, and the last one


class MultiToken(Checked):
    """Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2): module k predicts token t + 1 + k at t.

    A module reads what the one before it, or the model, hands to the head, and the embedding of token t + k. It has one
    layer; embedding and head are the model's. Generation and validation do not run the modules.
    """

    weight: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = Field(
        0.3, description="Factor of the mean of the modules' losses in the training loss (DeepSeek-V3: 0.3, then 0.1)."
    )
    depth: Annotated[int, Field(strict=True, ge=1, le=8)] = Field(
        1, description="How many modules, each of which predicts one token further."
    )
    block: Annotated[str, Field(pattern=f"^{schedule.USE.pattern}$", max_length=200)] | None = Field(
        None, description="Attention block of the modules, e.g. `global` or `ansa.local`. Default: the last layer's."
    )
    ffn: Annotated[str, Field(pattern=f"^{schedule.NAME.pattern}$", max_length=100)] | None = Field(
        None, description="Feed-forward of the modules, by its name in `ffns`. Default: the last layer's."
    )

    @property
    def use(self) -> schedule.Use | None:
        """The block and its part; None for those of the last layer."""
        return None if self.block is None else schedule.parse(self.block).uses[0]


def multi_token_problems(
    found: Any, blocks: Mapping[str, Any], names: set[str], ffn_names: set[str]
) -> Iterator[FieldProblem]:
    """What does not fit the rest of the model.

    found: MultiToken; anything else has problems of its own.  blocks: those that are valid; names: all of them.
    """
    if not isinstance(found, MultiToken):
        return
    use = found.use
    if use is not None and names:
        if use.name not in names:
            yield ("multi_token", "block"), unknown("block", use.name, sorted(names))
        elif use.name in blocks:
            yield from ((("multi_token", "block"), why) for why in _part_problems(use, blocks[use.name]))
    if found.ffn is not None and not ffn_names:
        yield ("multi_token", "ffn"), f"is for a model with ffns; ffn is for every layer; found {found.ffn!r}"
    elif found.ffn is not None and found.ffn not in ffn_names:
        yield ("multi_token", "ffn"), unknown("feed-forward", found.ffn, sorted(ffn_names))


def _part_problems(use: schedule.Use, block: Any) -> Iterator[str]:
    """Of a block with parts one is named, of another none."""
    if block.parts and use.part not in block.parts:
        wanted = " or ".join(f"{use.name}.{part}" for part in block.parts)
        yield f"must name a part of the block: {wanted}; found {str(use)!r}"
    elif use.part is not None and not block.parts:
        yield f"block {use.name!r} ({block.kind}) has no parts; found {str(use)!r}"


def depth(model: "ModelConfig") -> int:
    """How many modules a model has."""
    return 0 if model.multi_token is None else model.multi_token.depth
