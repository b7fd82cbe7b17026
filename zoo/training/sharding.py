"""How the devices of a training share the model, and when they exchange parts of it."""

import contextlib
from contextlib import AbstractContextManager

import torch
from composer.utils.parallelism import FSDP2Config
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from zoo.training.config import TrainConfig


def parallelism(train: TrainConfig) -> dict[str, FSDP2Config]:
    """How Composer shards the model."""
    return {"fsdp": FSDP2Config(state_dict_type="full", reshard_after_forward=train.reshard_after_forward)}


class Exchange:
    """What a micro-batch exchanges. After the last of a batch, gradients are always summed and weights freed.

    FSDP2 does both after every micro-batch, unless told otherwise. DDP has whole weights and sums gradients once a
    batch.
    """

    def __init__(self, train: TrainConfig, model: torch.nn.Module, sharded: bool):
        """model: as Composer has wrapped it.  sharded: by FSDP2, which wraps its children.

        Raises RuntimeError if nothing of a sharded model is: settings that reach nothing would be ignored.
        """
        self.model = model
        self.sums_each, self.frees_each = train.gradient_sync == "micro_batch", train.reshard_after_forward
        self.shards = [module for module in model.children() if isinstance(module, FSDPModule)]
        if sharded and not self.shards:
            raise RuntimeError("no child of the model is sharded by FSDP2")
        self._last: bool | None = None

    def before(self, last: bool) -> None:
        """Called before each micro-batch.  last: whether it is that of its batch."""
        if last == self._last:  # setting the flags visits every module of the model
            return
        self._last = last
        for module in self.shards:
            module.set_requires_gradient_sync(last or self.sums_each)
            module.set_reshard_after_backward(last or self.frees_each)

    def around(self, last: bool) -> AbstractContextManager:
        """For forward and backward of a micro-batch with DDP, which Composer's own step does itself."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()
