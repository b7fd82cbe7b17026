"""The torch half of `average`."""

import torch
from torch import nn


class Average(nn.Module):
    """y_t = W_O mean over s <= t of W_V x_s."""

    def __init__(self, d_model: int, width: int):
        super().__init__()
        self.value = nn.Linear(d_model, width, bias=False)
        self.output = nn.Linear(width, d_model, bias=False)

    def forward(self, x_BTC: torch.Tensor, context) -> torch.Tensor:
        counts_T1 = torch.arange(1, x_BTC.shape[1] + 1, device=x_BTC.device)[:, None]
        return self.output(self.value(x_BTC).cumsum(1) / counts_T1)
