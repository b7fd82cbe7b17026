"""The decoder as Composer sees it: a forward on a batch, a loss, and the validation metric."""

import torch
from composer.models import ComposerModel
from torchmetrics import Metric

from zoo.fused import IGNORED


def n_targets(batch: dict) -> torch.Tensor:
    """Places of a batch that have a target; at least 1, so that a batch without any has the loss 0 and not 0/0."""
    return (batch["labels"] != IGNORED).sum().clamp(min=1)


def count_tokens(batch: dict) -> dict[str, int]:
    """Tokens for Composer: all places for the clock, and targets to weigh micro-batches and devices by."""
    return {"total": batch["input_ids"].numel(), "loss_generating": int(n_targets(batch))}


class SummedLoss(torch.nn.Module):
    """The decoder and its loss as one module, whose call is all that training and validation make.

    Composer's FSDP2 shards the child of the ComposerModel, so the child's own call has to be the whole forward.
    """

    def __init__(self, decoder: torch.nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: dict) -> torch.Tensor:
        """The sum of the cross-entropies of a batch's targets, in nats."""
        return self.decoder.loss(batch["input_ids"], batch["labels"], batch["document_starts"], reduction="sum")

    def fsdp_wrap_fn(self, module: torch.nn.Module) -> bool:
        """Each layer is sharded by itself; embedding, last norm and head together."""
        return module in set(self.decoder.layers)


PREFIX = "summed_loss.decoder."  # of the decoder's weights in a LanguageModel


class LanguageModel(ComposerModel):
    """zoo.model.Decoder as a ComposerModel; its forward is the sum of a batch's cross-entropies."""

    def __init__(self, decoder: torch.nn.Module):
        super().__init__()
        self.summed_loss = SummedLoss(decoder)

    def forward(self, batch: dict) -> torch.Tensor:
        return self.summed_loss(batch)

    def loss(self, outputs: torch.Tensor, batch: dict) -> torch.Tensor:
        return outputs / n_targets(batch)

    def eval_forward(self, batch: dict, outputs: torch.Tensor | None = None) -> torch.Tensor:
        return self(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        return {} if is_train else {"loss": MeanLoss()}

    def update_metric(self, batch: dict, outputs: torch.Tensor, metric: Metric) -> None:
        metric.update(outputs, (batch["labels"] != IGNORED).sum())


class MeanLoss(Metric):
    """Mean cross-entropy in nats over all targets of all devices, summed in float64."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("targets", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, total: torch.Tensor, targets: torch.Tensor) -> None:
        self.total += total.to(torch.float64)
        self.targets += targets

    def compute(self) -> torch.Tensor:
        return self.total / self.targets
