"""Weight decay reaches matrices and nothing else; AdamW is the paper's, in PyTorch's form."""

import pytest
import torch
from torch import nn

from zoo.training.optimizer import make_optimizer, parameter_groups
from zoo.training.optimizers.adamw_config import AdamW


class Model(nn.Module):
    """One parameter of each sort, the head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.RMSNorm(4)
        self.positions = nn.Parameter(torch.ones(3, 4))
        self.positions.weight_decay = False
        self.frozen = nn.Parameter(torch.ones(4, 4), requires_grad=False)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


def names(model, group):
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return sorted(by_id[id(parameter)] for parameter in group["params"])


def test_which_parameters_decay():
    model = Model()
    decayed, free = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert names(model, decayed) == ["linear.weight"]
    assert names(model, free) == ["embedding.weight", "linear.bias", "norm.weight", "positions"]
    decayed, _ = parameter_groups(model, 0.1, decay_embeddings=True)
    assert names(model, decayed) == ["embedding.weight", "linear.weight"]


def test_a_step_without_gradient_takes_off_lr_times_weight_decay():
    model = nn.Linear(3, 3)
    before = model.weight.detach().clone()
    optimizer = make_optimizer(model, AdamW(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    bias = model.bias.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before * (1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias.detach(), bias, rtol=0, atol=0)


def test_the_recipe_reaches_the_optimizer():
    config = AdamW(lr=0.01, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3)
    group = make_optimizer(nn.Linear(2, 2), config).param_groups[0]
    assert {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")} == config.model_dump(
        include={"lr", "betas", "eps", "weight_decay"}
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_every_trained_parameter_is_in_one_group(weight_decay):
    model = Model()
    groups = parameter_groups(model, weight_decay)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_the_learned_positions_of_a_pooling_are_not_decayed():
    from zoo.blocks.patterns.compression import BlockMLP

    decayed, free = parameter_groups(BlockMLP(4, 6), 0.1)
    assert [tuple(x.shape) for x in free["params"]] == [(4, 6)]
    assert len(decayed["params"]) == 2
