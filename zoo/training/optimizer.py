"""Making the optimiser of a recipe, and the parameter groups that optimisers share."""

import inspect
from collections.abc import Sequence

import torch
from torch import nn

from zoo.blocks.making import PartError, make
from zoo.training.names import factor_of, frozen_names
from zoo.training.optimizers.base import OptimizerConfig


def parameter_groups(model: nn.Module, weight_decay: float, decay_embeddings: bool = False) -> list[dict]:
    """Split the parameters into those with weight decay and those without.

    No decay: vectors and scalars (norms, biases), embeddings unless `decay_embeddings`, and any parameter that says
    `parameter.weight_decay = False` (a block's learned positions, say). A head tied to the embedding is the embedding.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or not getattr(parameter, "weight_decay", True)
        exempt = exempt or (id(parameter) in embeddings and not decay_embeddings)
        (free if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimizerConfig, lr_ratio: float = 1.0) -> torch.optim.Optimizer:
    """The optimiser as the recipe says; lr_ratio scales the first learning rates, a callback sets all later ones.

    Each kind makes its parameter groups; those that `lr_multipliers` divides are split here.
    """
    what = f"optimiser {config.kind!r}"
    optimizer = make(what, config.module, model, config, is_a=torch.optim.Optimizer)
    parameters = inspect.signature(type(optimizer).step).parameters.values()
    if not any(each.name == "closure" or each.kind is each.VAR_KEYWORD for each in parameters):
        raise PartError(f"{what}: {type(optimizer).__name__}.step must take a closure, and call it")
    if config.lr_multipliers:
        _apply_multipliers(optimizer, model, config)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * lr_ratio
    return optimizer


def _apply_multipliers(optimizer: torch.optim.Optimizer, model: nn.Module, config: OptimizerConfig) -> None:
    """Split each group by the factors of its parameters; a new optimiser has no state that would have to follow.

    Groups with the factor 1 come first: metrics state the learning rate of the first.
    """
    factors = {id(parameter): factor_of(name, config.lr_multipliers) for name, parameter in model.named_parameters()}
    groups: list[tuple[float, dict]] = []
    for group in optimizer.param_groups:
        of_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            of_factor.setdefault(factors[id(parameter)], []).append(parameter)
        for factor, parameters in of_factor.items():
            groups.append((factor, group | {"params": parameters, "lr": group["lr"] * factor}))
    optimizer.param_groups[:] = [group for _, group in sorted(groups, key=lambda pair: pair[0] != 1)]


def freeze(model: nn.Module, patterns: Sequence[str]) -> int:
    """Exclude the parameters that `patterns` name from training; returns how many numbers they hold.

    Call it before the optimiser is made, so that the optimiser has no state for them.
    """
    parameters = dict(model.named_parameters())
    frozen = [parameters[name] for name in frozen_names(parameters, patterns)]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in frozen)
