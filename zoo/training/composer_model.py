"""The decoder as Composer sees it: a forward on a batch, a loss, and the validation metric."""

import math

import numpy as np
import torch
from composer.models import ComposerModel
from torchmetrics import Metric

from zoo.model import Decoder
from zoo.model.fused import IGNORED


def n_targets(batch: dict) -> torch.Tensor:
    """Places of a batch that have a target; at least 1, so that a batch without any has the loss 0 and not 0/0."""
    return (batch["labels"] != IGNORED).sum().clamp(min=1)


def count_targets(batch: dict) -> int:
    """`n_targets` as a number. On the CPU by NumPy: torch would wake all its threads for a few microseconds of work."""
    labels = batch["labels"]
    if labels.device.type != "cpu":
        return int(n_targets(batch))
    return max(1, int(np.count_nonzero(labels.numpy() != IGNORED)))


def count_tokens(batch: dict) -> dict[str, int]:
    """Tokens for Composer: all places for the clock, and targets to weigh micro-batches and devices by."""
    return {"total": batch["input_ids"].numel(), "loss_generating": count_targets(batch)}


class SummedLoss(torch.nn.Module):
    """The decoder and its loss as one module, whose call is all that training and validation make.

    Composer's FSDP2 shards the child of the ComposerModel, so the child's own call has to be the whole forward.
    """

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def forward(
        self, batch: dict, *, places: tuple[torch.Tensor, torch.Tensor] | None = None, count_right: bool = False
    ) -> torch.Tensor:
        """The sum of the cross-entropies of a batch's targets, in nats.

        count_right: [2], with the number of targets that are the likeliest token behind it.
        places: (row_N, position_N); the logits [N, V] after these places instead of a loss.
        """
        if places is not None:
            hidden_BTC = self.decoder.hidden(batch["input_ids"], batch["document_starts"])
            return self.decoder.logits(hidden_BTC[places])
        if count_right:
            return self._loss_and_right(batch)
        return self.decoder.loss(batch["input_ids"], batch["labels"], batch["document_starts"], reduction="sum")

    def _loss_and_right(self, batch: dict) -> torch.Tensor:
        """[2] float64: the summed loss, and how many targets are the likeliest token."""
        labels_BT = batch["labels"]
        where = (labels_BT != IGNORED).nonzero(as_tuple=True)
        logits_NV = self(batch, places=where).float()
        total = torch.nn.functional.cross_entropy(logits_NV, labels_BT[where], reduction="sum")
        right = (logits_NV.argmax(1) == labels_BT[where]).sum()
        return torch.stack((total.double(), right.double()))

    def fsdp_wrap_fn(self, module: torch.nn.Module) -> bool:
        """Each layer is sharded by itself; embedding, last norm and head together."""
        return module in {*self.decoder.layers, *self.decoder.multi_token}


PREFIX = "summed_loss.decoder."  # of the decoder's weights in a LanguageModel


class LanguageModel(ComposerModel):
    """zoo.model.Decoder as a ComposerModel; its forward is the sum of a batch's cross-entropies.

    token_bytes: of zoo/data/token_bytes.py; None: no bits per byte.
    answers: whether the targets are the answers of a task, few of a row, so that validation counts the right ones.
    """

    def __init__(self, decoder: Decoder, token_bytes: np.ndarray | None = None, answers: bool = False):
        super().__init__()
        self.summed_loss = SummedLoss(decoder)
        self.token_bytes, self.answers = token_bytes, answers

    def forward(self, batch: dict) -> torch.Tensor:
        return self.summed_loss(batch)

    def loss(self, outputs: torch.Tensor, batch: dict) -> torch.Tensor:
        return outputs / n_targets(batch)

    def eval_forward(self, batch: dict, outputs: torch.Tensor | None = None) -> torch.Tensor:
        """The sum of a batch's cross-entropies; of answers [2], with the number of right ones behind it."""
        return self.summed_loss(batch, count_right=self.answers) if outputs is None else outputs

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        if is_train:
            return {}
        of_bytes = {} if self.token_bytes is None else {"bits_per_byte": BitsPerByte(self.token_bytes)}
        return {"loss": MeanLoss(), **of_bytes, **({"accuracy": Accuracy()} if self.answers else {})}

    def update_metric(self, batch: dict, outputs: torch.Tensor, metric: Metric) -> None:
        if self.answers:
            outputs = outputs[1] if isinstance(metric, Accuracy) else outputs[0]
        metric.update(outputs, batch["labels"])


class MeanLoss(Metric):
    """Mean cross-entropy in nats over all targets of all devices, summed in float64."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("targets", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, total: torch.Tensor, labels: torch.Tensor) -> None:
        """total: sum of the cross-entropies of the labels that are not ignored."""
        self.total += total.to(torch.float64)
        self.targets += (labels != IGNORED).sum()

    def compute(self) -> torch.Tensor:
        return self.total / self.targets


class Accuracy(MeanLoss):
    """Share of the targets of all devices that are the likeliest token; `total` counts the right ones."""


class BitsPerByte(Metric):
    """Cross-entropy in bits over the bytes that the scored targets stand for, of all devices, summed in float64.

    token_bytes: bytes of each token, [vocabulary].  Padding and ignored places count neither as loss nor as bytes.
    """

    full_state_update = False

    def __init__(self, token_bytes: np.ndarray):
        super().__init__()
        self.register_buffer("token_bytes", torch.as_tensor(token_bytes, dtype=torch.float64), persistent=False)
        self.add_state("nats", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bytes", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, total: torch.Tensor, labels: torch.Tensor) -> None:
        """total: sum of the cross-entropies of the labels that are not ignored."""
        self.nats += total.to(torch.float64)
        sizes = self.token_bytes.to(labels.device)[labels.clamp(min=0)]
        self.bytes += sizes.masked_fill(labels == IGNORED, 0.0).sum()

    def compute(self) -> torch.Tensor:
        return self.nats / math.log(2) / self.bytes
