"""Modules that predict the tokens after the next one (`model.multi_token`; DeepSeek-V3, arXiv 2412.19437, eq. 21-25).

Shapes: B batch, T tokens, C model width.
"""

import torch
from torch import nn

from zoo.blocks.context import Context
from zoo.blocks.parts import linear
from zoo.kernels.documents import Documents
from zoo.model import fused
from zoo.model.layer import Layer, make_norm
from zoo.recipe import LayerConfig, ModelConfig


class MultiTokenModule(nn.Module):
    """h' = n(layer(W [n_e(e); n_h(h)])): module k from the hidden states h of module k - 1 and embeddings e.

    Left open by the report, chosen here: h of the model and of every module is what the head reads, after the last
    norm, as programs that run the published weights take it; each module has a last norm of its own, as those weights.
    """

    def __init__(self, model: ModelConfig, layer: LayerConfig):
        super().__init__()
        self.embedding_norm, self.hidden_norm = make_norm(model), make_norm(model)
        self.input = linear(2 * model.d_model, model.d_model)
        self.layer = Layer(model, layer)
        self.norm = make_norm(model)

    def forward(self, hidden_BTC: torch.Tensor, embedded_BTC: torch.Tensor, context: Context) -> torch.Tensor:
        """embedded_BTC: embeddings of the tokens that follow, in the dtype of the residual stream.

        Returns what the head reads, [B, T, C].
        """
        read = [self.embedding_norm(embedded_BTC, None)[1], self.hidden_norm(hidden_BTC, None)[1]]
        x_BTC = self.input(torch.cat(read, -1)).to(embedded_BTC.dtype)
        return self.norm(*self.layer(x_BTC, None, context))[1]


def further_labels(labels_BT: torch.Tensor, ahead: int, documents: Documents | None) -> torch.Tensor:
    """The target `ahead` places further on: labels_BT[:, t + ahead] at t, int64 [B, T].

    -100 where the row ends before it, or where the tokens in between, which the module reads, begin another document.
    """
    index_T = torch.arange(labels_BT.shape[1], device=labels_BT.device)
    kept = index_T < labels_BT.shape[1] - ahead
    if documents is not None:
        kept = kept & (documents.start_BT.roll(-ahead, 1) <= index_T)
    return torch.where(kept, labels_BT.roll(-ahead, 1), fused.IGNORED)
