"""AdamW over two parameter groups: matrices, which decay, and everything else, which does not."""

import torch
from torch import nn

from zoo.training.optimizer import parameter_groups
from zoo.training.optimizers.adamw_config import AdamW


def make(model: nn.Module, config: AdamW) -> torch.optim.AdamW:
    """The optimiser of a model, on the model's device."""
    groups = parameter_groups(model, config.weight_decay, config.decay_embeddings)
    on_gpu = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True if on_gpu else None)
