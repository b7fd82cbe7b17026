"""Feed-forwards as parts: one of another package, with experts, a loss of its own and weights it draws itself."""

import json
import math
import sys
import types
from typing import ClassVar, Literal

import pytest
import torch
from pydantic import Field
from torch import nn

from zoo.blocks import register
from zoo.blocks.context import Context, Step
from zoo.counting.model_cost import model_cost
from zoo.counting.run_cost import GPUS, step_size
from zoo.errors import RecipeError, ZooError
from zoo.feed_forward.base import Count, FeedForwardConfig
from zoo.model import build_model
from zoo.parts import FEED_FORWARDS
from zoo.recipe import ModelConfig, load_recipe
from zoo.report.show import as_json, as_text

KINDS = ", ".join(repr(kind) for kind in FEED_FORWARDS.own)
RECIPE = """\
name: experts
model:
  d_model: 16
  vocab_size: 264
  max_seq_len: 32
  ffn: {kind: experts, d_ff: 8, n_experts: 6}
  blocks: {full: {kind: full, n_heads: 2}}
  layers: full*2
"""


class Experts(FeedForwardConfig):
    """The best of several small networks for each token."""

    module: ClassVar[str] = "zoo_experts:ExpertsModule"

    kind: Literal["experts"] = Field("experts", description="A mixture of experts.")
    d_ff: Count = Field(description="Width of an expert.")
    n_experts: Count = Field(4, description="Experts.")

    def parameters(self, d_model: int) -> int:
        return d_model * self.n_experts * (1 + 2 * self.d_ff)

    def active_parameters(self, d_model: int) -> int:
        return d_model * (self.n_experts + 2 * self.d_ff)

    def activation_bytes(self, d_model: int) -> int:
        return 2 * d_model


class ExpertsModule(nn.Module):
    def __init__(self, config: Experts, d_model: int):
        super().__init__()
        self.router = nn.Linear(d_model, config.n_experts, bias=False)
        self.up = nn.Parameter(torch.empty(config.n_experts, d_model, config.d_ff))
        self.down = nn.Parameter(torch.empty(config.n_experts, config.d_ff, d_model))

    def initialise(self, generator: torch.Generator, std: float, residual_std: float) -> None:
        for parameter, deviation in ((self.router.weight, std), (self.up, std), (self.down, residual_std)):
            parameter.normal_(0.0, deviation, generator=generator)

    def forward(self, x_BTC, context):
        weight, chosen = self.router(x_BTC).softmax(-1).max(-1)
        context.add_loss(weight.mean())
        hidden = torch.einsum("btc,btcf->btf", x_BTC, self.up[chosen]).relu()
        return weight[..., None] * torch.einsum("btf,btfc->btc", hidden, self.down[chosen])


@pytest.fixture
def experts(monkeypatch):
    module = types.ModuleType("zoo_experts")
    module.Experts, module.ExpertsModule = Experts, ExpertsModule
    monkeypatch.setitem(sys.modules, "zoo_experts", module)
    monkeypatch.setattr(FEED_FORWARDS, "own", dict(FEED_FORWARDS.own))
    register("experts", "zoo_experts:Experts", family="ffns")


@pytest.fixture
def recipe(experts, tmp_path):
    (tmp_path / "experts.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "experts.yaml")


def test_all_and_active_parameters_are_told_apart(recipe):
    cost = model_cost(recipe.model, 32)
    assert cost.parameters["ffn"] == 2 * 16 * 6 * 17
    assert cost.parameters["total"] - cost.active_parameters == 2 * (16 * 6 * 17 - 16 * (6 + 16))
    assert cost.flops_by_part["ffn"] == 2 * 2 * 16 * (6 + 16)
    assert json.loads(as_json(recipe))["active_parameters"] == cost.active_parameters
    assert f"active {cost.active_parameters:>14,}" in as_text(recipe, 120)
    assert step_size(recipe, 32, 1, GPUS["h200"]).activations > 0
    sum_of_parameters = sum(parameter.numel() for parameter in build_model(recipe).parameters())
    assert sum_of_parameters == cost.parameters["total"]


def test_a_part_draws_its_own_weights_by_the_seed(recipe):
    models = [build_model(recipe, seed=seed) for seed in (1, 1, 2)]
    downs = [model.layers[1].feed_forward.down for model in models]
    assert torch.equal(downs[0], downs[1])
    assert not torch.equal(downs[0], downs[2])
    assert float(downs[0].detach().std()) == pytest.approx(0.02 / math.sqrt(4), rel=0.1)
    assert float(models[0].layers[0].feed_forward.router.weight.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_what_a_part_does_not_draw_keeps_what_it_got_when_it_was_made(recipe, monkeypatch):
    """A linear map as PyTorch draws it or as the part fills it, and what the part reads of one."""

    def make(module, config, d_model):
        make_plain(module, config, d_model)
        torch.nn.init.constant_(module.router.weight, 0.25)
        module.features = nn.Linear(d_model, 4).weight.detach().clone()  # random features

    make_plain = ExpertsModule.__init__
    monkeypatch.setattr(ExpertsModule, "initialise", lambda *_: None)
    plain = build_model(recipe).layers[0].feed_forward.router.weight.detach()
    assert 0 < float(plain.abs().max()) <= 1 / math.sqrt(16)
    monkeypatch.setattr(ExpertsModule, "__init__", make)
    part = build_model(recipe).layers[0].feed_forward
    assert bool((part.router.weight == 0.25).all())
    assert 0.05 < float(part.features.std()) < 1 / math.sqrt(16)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_its_own_loss_is_trained_on_and_not_validated(recipe, checkpointing):
    model = build_model(recipe)
    model.activation_checkpointing = checkpointing
    tokens_BT = torch.arange(30).view(2, 15)
    labels_BT = tokens_BT.clone()
    labels_BT[0, :5] = -100
    mean, total = (model.loss(tokens_BT, labels_BT, reduction=name) for name in ("mean", "sum"))
    model.eval()
    plain = model.loss(tokens_BT, labels_BT)
    context = Context.for_tokens(2, 15)
    model._hidden(tokens_BT, context)
    own = sum(context.losses)
    assert len(context.losses) == 2
    torch.testing.assert_close(mean, plain + own)
    torch.testing.assert_close(total, 25 * (plain + own))
    model.train()
    (model.loss(tokens_BT, labels_BT) - plain.detach()).backward()
    with_own = model.layers[1].feed_forward.router.weight.grad.clone()
    model.zero_grad()
    model.eval()
    model.loss(tokens_BT, labels_BT).backward()
    assert not torch.allclose(with_own, model.layers[1].feed_forward.router.weight.grad)


def test_it_generates(recipe):
    model = build_model(recipe).eval()
    tokens_BT = torch.arange(20)[None]
    cache = model.new_cache(1, 20)
    parts = [model(part, cache=cache) for part in tokens_BT.split([12, 1, 7], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens_BT))
    assert Step.after(torch.zeros(1, dtype=torch.int64), 3, None, True).add_loss(torch.tensor(1.0)) is None


def test_mistakes_are_named(experts, tmp_path):
    path = tmp_path / "wrong.yaml"
    for old, new, why in (
        ("n_experts: 6", "n_expert: 6", "model.ffn.n_expert: unknown key 'n_expert'; known: kind, d_ff, n_experts"),
        ("d_ff: 8", "d_ff: 0", "model.ffn.d_ff: must be at least 1; found 0"),
        ("kind: experts", "kind: expert", f"model.ffn.kind: must be {KINDS} or 'experts'; found 'expert'"),
        ("kind: experts", "kind: [experts]", f"model.ffn.kind: must be {KINDS} or 'experts'; found a list"),
        ("kind: experts, ", "", "model.ffn.n_experts: unknown key 'n_experts'; known: kind, d_ff, bias"),
    ):
        path.write_text(RECIPE.replace(old, new))
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert why in str(caught.value)


def test_a_wrong_count_is_named(experts, monkeypatch):
    monkeypatch.setattr(Experts, "parameters", lambda self, d_model: 7)
    settings = {"d_model": 16, "vocab_size": 30, "max_seq_len": 8, "blocks": {"a": {"kind": "full", "n_heads": 2}}}
    config = ModelConfig.model_validate({**settings, "layers": "a", "ffn": {"kind": "experts", "d_ff": 8}})
    with pytest.raises(
        ZooError, match=r"model\.ffn \(ExpertsModule\) has 1,088 parameters; Experts\.parameters counts 7;"
    ):
        build_model(config)


def test_the_default_kind_needs_no_name():
    settings = {"d_model": 16, "vocab_size": 30, "max_seq_len": 8, "blocks": {"a": {"kind": "full", "n_heads": 2}}}
    assert ModelConfig.model_validate({**settings, "layers": "a", "ffn": {"d_ff": 8}}).ffn.kind == "swiglu"


def test_a_loss_outlives_the_copies_of_arguments_that_fsdp2_makes():
    from torch.distributed.utils import _apply_to_tensors  # what FSDP2 applies to the arguments of each layer

    context, listed = Context.for_tokens(1, 4), []
    (copied, other), _ = _apply_to_tensors(lambda tensor: tensor, ((context, listed), {}))
    assert other is not listed, "else this test shows nothing"
    copied.add_loss(torch.tensor(2.0))
    assert context.losses == [torch.tensor(2.0)]
