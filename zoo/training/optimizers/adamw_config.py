"""The optimiser `adamw`. No torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from zoo.blocks.about import About, Paper
from zoo.training.optimizers.base import MOST_SETTING, OptimizerConfig, Positive


class AdamW(OptimizerConfig):
    """AdamW with decoupled weight decay (arXiv 1711.05101) in PyTorch's form: each step takes off lr x weight_decay."""

    module: ClassVar[str] = "zoo.training.optimizers.adamw:make"
    about: ClassVar[About] = About(
        papers=(Paper("Decoupled Weight Decay Regularization (Loshchilov 2017)", "1711.05101"),),
        example={"lr": 3e-4},
    )

    kind: Literal["adamw"] = Field("adamw", description="The optimiser.")
    lr: Positive = Field(3e-4, description="Peak learning rate, reached at the end of the warm-up.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), description="Decay rates of the averages of the gradient and of its square."
    )
    eps: Positive = Field(1e-8, description="Added to the root of the second average.")
    weight_decay: Annotated[float, Field(ge=0, le=MOST_SETTING, allow_inf_nan=False)] = Field(
        0.1, description="Weight decay of matrices. Norms, biases and other vectors have none."
    )
    decay_embeddings: bool = Field(
        False, description="Whether the token embedding (and a tied output head) is decayed too."
    )
