"""What an optimiser says of itself without torch: its fields, and what it needs of a GPU's memory and time."""

from typing import Annotated, ClassVar

from pydantic import Field

from zoo.blocks.checked import NUMBER, Fact, Facts, Kinded
from zoo.blocks.cost import FLOAT

MOST_SETTING = 1e6  # beyond any use, and far below where float32 overflows
NamePattern = Annotated[str, Field(min_length=1, max_length=200)]  # of parameters; zoo/training/names.py
Positive = Annotated[float, Field(gt=0, le=MOST_SETTING, allow_inf_nan=False)]


class OptimizerConfig(Kinded):
    """The optimiser, as a recipe writes it. A subclass states at least `module`.

    Every optimiser has a peak learning rate `lr`. Parameter groups may have peaks of their own: the learning rate that
    a group has when the optimiser is made is its peak, and the schedule scales each by the same ratio.
    The optimiser's `step(closure)` calls the closure, as those of torch do: Composer computes loss and gradients in it.
    """

    module: ClassVar[str]  # "package.module:function"; called as function(model, config), returns a torch optimiser

    lr: Positive = Field(3e-4, description="Peak learning rate, reached at the end of the warm-up.")

    lr_multipliers: dict[NamePattern, Positive] = Field(
        {},
        description="Factors of the learning rate by name or pattern of parameters: {'layers.0': 0.1, '*norm*': 2}. A "
        "parameter that several patterns match has the product.",
    )

    def facts(self, d_model: int, seq_len: int, part: str | None = None) -> Facts:
        """What an optimiser of another package is asked for."""
        yield Fact("state_bytes", lambda: self.state_bytes(1000), NUMBER)
        yield Fact("step_traffic", lambda: self.step_traffic(1000), NUMBER)

    def state_bytes(self, parameters: int) -> int:
        """Bytes of its state for so many float32 parameters; by default two averages, as Adam's."""
        return 2 * FLOAT * parameters

    def step_traffic(self, parameters: int) -> int:
        """Bytes that a step reads and writes: weight, gradient and state read, weight and state written."""
        return 3 * FLOAT * parameters + 2 * self.state_bytes(parameters)
