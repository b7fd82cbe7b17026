"""An optimiser and a schedule of another package: each group keeps its own peak, and the plan follows the schedule."""

import sys
import types
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar, Literal

import pytest
import torch
from pydantic import Field
from torch import nn

from zoo.blocks import register
from zoo.blocks.making import PartError
from zoo.counting.run_cost import GPUS, step_size
from zoo.errors import RecipeError
from zoo.parts import LOGGERS, OPTIMIZERS, SCHEDULES
from zoo.recipe import load_recipe
from zoo.training.callbacks import LearningRate
from zoo.training.config import EvalConfig
from zoo.training.logger_config import LoggerConfig
from zoo.training.loggers import check_installed, composer_loggers
from zoo.training.optimizer import make_optimizer
from zoo.training.optimizers.base import OptimizerConfig
from zoo.training.plan import Plan
from zoo.training.schedules import ScheduleConfig

RECIPE = """\
name: training_parts
model:
  d_model: 16
  vocab_size: 264
  max_seq_len: 32
  ffn: {d_ff: 8}
  blocks: {full: {kind: full, n_heads: 2}}
  layers: full
train:
  duration: 10ba
  optimizer: {kind: twolr, lr: 0.5, vector_lr: 0.01}
  schedule: {kind: steps, warmup: 2ba, factor: 0.1}
"""


class TwoRates(OptimizerConfig):
    """Plain descent; vectors have a learning rate of their own."""

    module: ClassVar[str] = "zoo_training:make"

    kind: Literal["twolr"] = Field("twolr", description="Descent with two rates.")
    vector_lr: float = Field(0.1, gt=0, description="Peak learning rate of vectors.")

    def state_bytes(self, parameters: int) -> int:
        return 0


class Steps(ScheduleConfig):
    """The peak, then a share of it in the second half."""

    kind: Literal["steps"] = Field("steps", description="One step down.")
    factor: float = Field(0.5, ge=0, le=1, description="Share of the peak after the step.")

    def after_warmup(self, progress: float) -> float:
        return 1.0 if progress <= 0.5 else self.factor


class Printed(LoggerConfig):
    """Prints."""

    module: ClassVar[str] = "zoo_training:make_printed"

    kind: Literal["printed"] = Field("printed", description="Prints.")


class Absent(LoggerConfig):
    """Needs a library that is not there."""

    module: ClassVar[str] = "zoo_no_such_library:make"
    package: ClassVar[str] = "zoo_no_such_library"

    kind: Literal["absent"] = Field("absent", description="Absent.")


def make_printed(run_name, run_dir):
    return run_name, run_dir


def make(model: nn.Module, config: TwoRates) -> torch.optim.SGD:
    groups = {"lr": [], "vector_lr": []}
    for parameter in model.parameters():
        groups["lr" if parameter.ndim > 1 else "vector_lr"].append(parameter)
    return torch.optim.SGD([{"params": found, "lr": getattr(config, name)} for name, found in groups.items()])


@pytest.fixture
def path(monkeypatch, tmp_path):
    module = types.ModuleType("zoo_training")
    for part in (TwoRates, Steps, Printed, Absent, make, make_printed):
        setattr(module, part.__name__, part)
    monkeypatch.setitem(sys.modules, "zoo_training", module)
    for family in (LOGGERS, OPTIMIZERS, SCHEDULES):
        monkeypatch.setattr(family, "own", dict(family.own))
    register("twolr", "zoo_training:TwoRates", family="optimizers")
    register("steps", "zoo_training:Steps", family="schedules")
    register("printed", "zoo_training:Printed", family="loggers")
    register("absent", "zoo_training:Absent", family="loggers")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path / "mine.yaml"


def test_each_group_follows_the_schedule_from_its_own_peak(path):
    recipe = load_recipe(path)
    optimizer = make_optimizer(nn.Linear(3, 3), recipe.train.optimizer)
    peaks = [group["lr"] for group in optimizer.param_groups]
    assert peaks == [0.5, 0.01]
    plan = Plan.make(recipe.train, EvalConfig(), 32, 640)
    assert (plan.total, plan.warmup, plan.decay) == (10, 2, 8)
    callback, seen = LearningRate(plan, peaks), []
    for batch in range(10):
        callback.batch_start(SimpleNamespace(optimizers=[optimizer], timestamp=SimpleNamespace(batch=batch)), None)
        seen.append([group["lr"] for group in optimizer.param_groups])
    ratios = [0.5, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]
    assert seen == [pytest.approx([0.5 * ratio, 0.01 * ratio]) for ratio in ratios]


def test_a_recipe_with_them_resolves_to_itself_and_is_sized(path):
    recipe = load_recipe(path)
    path.write_text(recipe.dump())
    assert load_recipe(path) == recipe
    size = step_size(recipe, 32, 2, GPUS["h200"])
    assert size.optimiser == 0
    path.write_text(RECIPE.replace("{kind: twolr, lr: 0.5, vector_lr: 0.01}", "{lr: 0.001}"))
    assert step_size(load_recipe(path), 32, 2, GPUS["h200"]).optimiser == 2 * size.weights


def test_mistakes_are_named(path):
    for old, new, why in (
        ("twolr", "twolrs", "train.optimizer.kind: must be 'adamw' or 'twolr'; found 'twolrs'. Did you mean 'twolr'?"),
        (
            "vector_lr",
            "vectorlr",
            "train.optimizer.vectorlr: unknown key 'vectorlr'; known: kind, lr, lr_multipliers, vector_lr.",
        ),
        ("factor: 0.1", "factor: 2", "train.schedule.factor: must be at most 1; found 2"),
        ("steps", "step", "train.schedule.kind: must be 'cosine', 'linear', 'wsd' or 'steps'; found 'step'."),
        ("warmup: 2ba", "warmup: 2", "train.schedule.warmup: "),
    ):
        path.write_text(RECIPE.replace(old, new))
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert why in str(caught.value)


def test_loggers_are_named_and_made(path, tmp_path):
    recipe = load_recipe(path, ["train.loggers=[printed, jsonl]"])
    assert recipe.train.loggers == ["printed", "jsonl"]
    assert "loggers: [printed, jsonl]" in recipe.dump()
    assert composer_loggers(recipe.train.loggers, "mine", tmp_path) == [("mine", tmp_path)]
    check_installed(recipe.train.loggers)
    with pytest.raises(RecipeError, match=r"zoo_no_such_library is not installed; to install it: .* zoo_no_such"):
        check_installed(["absent"])
    known = "must be 'jsonl', 'tensorboard', 'wandb', 'mlflow', 'printed' or 'absent'"
    for value, found in (("prnted", "'prnted'. Did you mean 'printed'?"), ("3", "3."), ("[a]", "a list.")):
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, [f"train.loggers=[{value}]"])
        assert f"train.loggers[0]: {known}; found {found}" in str(caught.value)


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match=r"unknown family 'optimisers'; known: mixers, .*optimizers"):
        register("x", "y:Z", family="optimisers")


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (lambda self, **kwargs: kwargs["closure"](), None),
        (lambda self, closure=None: closure(), None),
        (lambda self: None, r"optimiser 'twolr': Own\.step must take a closure, and call it"),
    ],
    ids=["any keyword", "closure", "nothing"],
)
def test_an_optimiser_must_take_a_closure(path, monkeypatch, step, why):
    made = type("Own", (torch.optim.SGD,), {"step": step})
    monkeypatch.setattr(sys.modules["zoo_training"], "make", lambda model, config: made(model.parameters(), 0.1))
    with nullcontext() if why is None else pytest.raises(PartError, match=why):
        assert type(make_optimizer(nn.Linear(2, 2), TwoRates())) is made
