"""How the devices of a training share the model, and when they exchange parts of it."""

import contextlib
from collections.abc import Iterator

import torch
from composer.utils.parallelism import FSDP2Config
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from zoo.training.config import TrainConfig


def parallelism(train: TrainConfig) -> dict[str, FSDP2Config]:
    """How Composer shards the model."""
    return {"fsdp": FSDP2Config(state_dict_type="full", reshard_after_forward=train.reshard_after_forward)}


class Exchange:
    """What a micro-batch exchanges; the last of a batch always sums gradients over the devices and frees weights.

    By itself FSDP2 does both after every micro-batch. DDP has whole weights and sums gradients once a batch.
    """

    def __init__(self, train: TrainConfig):
        self.sums, self.frees = train.gradient_sync == "micro_batch", train.reshard_after_forward
        self._last: bool | None = None

    @contextlib.contextmanager
    def of_shards(self, model: torch.nn.Module, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch; nothing with DDP and on one device.

        model: whose children Composer has sharded.  last: of its batch.
        """
        if last != self._last:
            self._last = last
            for module in model.children():
                if isinstance(module, FSDPModule):
                    module.set_requires_gradient_sync(last or self.sums)
                    module.set_reshard_after_backward(last or self.frees)
        yield

    @contextlib.contextmanager
    def of_micro_batch(self, model: torch.nn.Module, last: bool) -> Iterator[None]:
        """As `of_shards`, and with DDP too."""
        if isinstance(model, DistributedDataParallel) and not last:
            with model.no_sync():
                yield
        else:
            with self.of_shards(model, last):
                yield
