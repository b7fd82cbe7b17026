"""Making the optimiser of a recipe, and the parameter groups that optimisers share."""

import torch
from torch import nn

from zoo.blocks.registry import load
from zoo.training.optimizers.base import OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float, decay_embeddings: bool = False) -> list[dict]:
    """Split the parameters into those with weight decay and those without.

    No decay: vectors and scalars (norms, biases), embeddings unless `decay_embeddings`, and any parameter that says
    `parameter.weight_decay = False` (a block's learned positions, say). A head tied to the embedding is the embedding.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed, free = [], []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or not getattr(parameter, "weight_decay", True)
        exempt = exempt or (id(parameter) in embeddings and not decay_embeddings)
        (free if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimizerConfig, lr_ratio: float = 1.0) -> torch.optim.Optimizer:
    """The optimiser as the recipe says; lr_ratio scales the first learning rates, a callback sets all later ones."""
    optimizer = load(config.module)(model, config)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * lr_ratio
    return optimizer
