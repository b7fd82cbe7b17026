"""How the devices of a run with `parallelism: fsdp2` share the model, and when they exchange parts of it."""

import torch
from composer.utils.parallelism import FSDP2Config
from torch.distributed.fsdp import FSDPModule

from zoo.training.config import TrainConfig


def parallelism(train: TrainConfig) -> dict[str, FSDP2Config]:
    """How Composer shards the model."""
    return {"fsdp": FSDP2Config(state_dict_type="full", reshard_after_forward=train.reshard_after_forward)}


class Exchange:
    """What the micro-batches of a batch exchange before the last one, which always reduces gradients and frees weights.

    By itself FSDP2 does both after every micro-batch.
    """

    def __init__(self, train: TrainConfig):
        self.reduces, self.frees = train.gradient_sync == "micro_batch", train.reshard_after_forward
        self._last: bool | None = None

    def before(self, model: torch.nn.Module, last: bool) -> None:
        """Called before each micro-batch.  model: whose children Composer has sharded.  last: of its batch."""
        if last == self._last:
            return
        self._last = last
        for module in model.children():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(last or self.reduces)
                module.set_reshard_after_backward(last or self.frees)
