"""Patterns of parameter names: what they match, what is refused, what freezing does to costs and to the optimiser."""

import pytest
import torch

from zoo.counting import model_cost as cost
from zoo.counting.run_cost import GPUS, step_size
from zoo.errors import RecipeError
from zoo.model import build_model
from zoo.report import show
from zoo.training.names import check_patterns, factor_of, frozen_names, frozen_parameters, matches
from zoo.training.optimizer import freeze, make_optimizer

NAMES = ("embedding.weight", "layers.0.attention.output.weight", "layers.1.attention.output.weight", "norm.weight")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("layers.0", NAMES[1:2]),
        ("layers.*.output.weight", NAMES[1:3]),
        ("*", NAMES),
        ("norm", NAMES[3:]),
        ("layers.[1-9]", NAMES[2:3]),
        ("layer", ()),
        ("embed", ()),
    ],
)
def test_a_pattern_names_parameters_and_modules(pattern, found):
    assert tuple(name for name in NAMES if matches(name, pattern)) == found


def test_factors_of_several_patterns_are_multiplied():
    factors = {"layers": 0.5, "*.output.weight": 0.1}
    assert [factor_of(name, factors) for name in NAMES] == [1.0, 0.05, 0.05, 1.0]


@pytest.mark.parametrize(
    ("override", "why"),
    [
        (
            "train.freeze=[layers.0, layer.1]",
            r"train.freeze: 'layer.1' matches no parameter of the model; its parameters",
        ),
        ("train.freeze=['*']", "train.freeze: freezes every parameter"),
        (
            "train.optimizer={lr_multipliers: {nrom: 2.0}}",
            r"train.optimizer.lr_multipliers: 'nrom' matches no parameter",
        ),
    ],
)
def test_patterns_that_name_nothing_are_refused(recipe, override, why):
    made = recipe(override)
    names = [name for name, _ in build_model(made, device="meta").named_parameters()]
    with pytest.raises(RecipeError, match=why):
        check_patterns(names, made.train)
    if "freeze" in override:
        with pytest.raises(RecipeError, match=why):
            frozen_parameters(made)


def test_a_multiplier_of_frozen_parameters_is_refused(recipe):
    made = recipe("train.freeze=[layers.0]", "train.optimizer={lr_multipliers: {layers.0: 0.5}}")
    names = [name for name, _ in build_model(made, device="meta").named_parameters()]
    with pytest.raises(RecipeError, match=r"'layers\.0' matches frozen parameters only"):
        check_patterns(names, made.train)


def test_frozen_parameters_are_counted_by_show_and_cost(recipe):
    plain, made = recipe(), recipe("train.freeze=[embedding, layers.0]")
    counted = cost.model_cost(made.model, 32).parameters
    first = sum(p.numel() for p in build_model(made).layers[0].parameters())
    assert frozen_parameters(made) == counted["embedding"] + first
    assert show.facts(made)["frozen_parameters"] == counted["embedding"] + first
    assert f"frozen  {frozen_parameters(made):,}" in " ".join(show.as_text(made).split()).replace("frozen ", "frozen  ")
    sizes = [step_size(each, 32, 1, GPUS["h200"]) for each in (plain, made)]
    trained = counted["total"] - frozen_parameters(made)
    assert sizes[1].gradients == 4 * trained
    assert sizes[1].optimiser == 8 * trained
    assert sizes[1].weights == sizes[0].weights
    assert sizes[1].peak < sizes[0].peak
    assert sizes[1].compute_s < sizes[0].compute_s
    assert sizes[0].frozen == 0
    assert show.facts(plain)["frozen_parameters"] == 0


def test_frozen_parameters_have_no_gradient_and_no_optimiser_state(recipe):
    made = recipe("train.freeze=[embedding, 'layers.0.attention']")
    model = build_model(made)
    freeze(model, made.train.freeze)
    optimizer = make_optimizer(model, made.train.optimizer)
    tokens = torch.arange(32).remainder(264)[None]
    model.loss(tokens, tokens.roll(-1)).backward()
    optimizer.step()
    frozen = frozen_names(dict(model.named_parameters()), made.train.freeze)
    assert "embedding.weight" in frozen
    assert len(frozen) > 1
    with_state = {id(parameter) for parameter in optimizer.state}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name
        assert (id(parameter) in with_state) == (name not in frozen), name


def test_multipliers_split_groups_and_keep_everything_else(recipe):
    made = recipe("train.optimizer={lr: 0.01, lr_multipliers: {layers.0: 0.5, '*norm*': 2.0}}")
    model = build_model(made)
    plain = make_optimizer(model, recipe("train.optimizer={lr: 0.01}").train.optimizer)
    optimizer = make_optimizer(model, made.train.optimizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {id(p): group["weight_decay"] for group in plain.param_groups for p in group["params"]}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            expected = 0.01 * (0.5 if name.startswith("layers.0.") else 1) * (2 if "norm" in name else 1)
            assert group["lr"] == pytest.approx(expected), name
            assert group["weight_decay"] == decay[id(parameter)], name
            seen[name] = group["betas"]
    assert set(seen) == set(names.values())
    assert optimizer.param_groups[0]["lr"] == 0.01
