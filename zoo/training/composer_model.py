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


class LanguageModel(ComposerModel):
    """Wraps zoo.model.Decoder.  forward(batch) -> the sum of the cross-entropies of its targets, in nats."""

    def __init__(self, decoder: torch.nn.Module):
        super().__init__()
        self.decoder = decoder
        for layer in decoder.layers:
            layer._fsdp_wrap = True  # FSDP2 shards layer by layer; embedding, norm and head form the root's group

    def forward(self, batch: dict) -> torch.Tensor:
        return self.decoder.loss(batch["input_ids"], batch["labels"], batch["document_starts"], reduction="sum")

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
