"""Parts of other packages that do not do what is asked of them: one line says which, where, and what would be right."""

import importlib
import sys

import pytest
import torch

from zoo.blocks.making import PartError
from zoo.blocks.registry import FAMILIES
from zoo.cli import run
from zoo.errors import RecipeError
from zoo.model import build_model
from zoo.recipe import load_recipe

RECIPE = """\
name: mine
plugins: [{module}]
model:
  d_model: 16
  vocab_size: 264
  max_seq_len: 32
  ffn: {{kind: {ffn}}}
  blocks: {{a: {block}}}
  layers: a*2
train: {{duration: 1ba, schedule: {{kind: {schedule}}}}}
"""
HEAD = """\
from typing import ClassVar, Literal
from pydantic import Field
import torch
from torch import nn
from zoo.blocks import register
from zoo.blocks.config import BlockConfig
from zoo.blocks.cost import Cost
from zoo.blocks.patterns.base import PatternConfig
from zoo.blocks.patterns.full import FullPattern
from zoo.blocks.patterns.full_config import Full
from zoo.blocks.projections.base import ProjectionConfig, ResolvedProjection
from zoo.feed_forward.base import FeedForwardConfig
from zoo.training.schedules import ScheduleConfig
class NamesNothing(ResolvedProjection):
    pass
NamesNothing.__abstractmethods__ = frozenset()
"""
CONFIG = """\
class Mine({base}):
    "A part of a test."
    module: ClassVar[str] = {target}
    kind: Literal["{kind}"] = Field("{kind}", description="Mine.")
    {body}
register("{kind}", __name__ + ":Mine", family="{family}")
"""
PAIRS = """
    def pairs(self, seq_len): return seq_len
    def reach(self, known, seq_len): return known
"""
SIZES = """
    def parameters(self, d_model): return d_model * d_model
    def activation_bytes(self, d_model): return 2 * d_model
"""
MODULE = """
class M(nn.Module):
    def __init__(self, config, d_model):
        super().__init__()
        self.output = nn.Linear(d_model, d_model, bias=False)
    def forward(self, x, context): return self.output(x)
"""
ONE_MORE = MODULE.replace("bias=False", "bias=True")


@pytest.fixture
def recipe(tmp_path, monkeypatch, request):
    """recipe(family, base, body, more) -> the path of a recipe whose plugin registers such a part."""
    for family in FAMILIES.values():
        monkeypatch.setattr(family, "own", dict(family.own))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = "zoo_own_part"
    monkeypatch.delitem(sys.modules, module, raising=False)

    def recipe(family: str, base: str, body: str, more: str = "", target: str = '__name__ + ":M"', kind: str = "mine"):
        config = CONFIG.format(base=base, body=body, family=family, target=target, kind=kind)
        (tmp_path / f"{module}.py").write_text(HEAD + config + more)
        importlib.invalidate_caches()
        blocks = {
            "mixers": "{kind: mine}",
            "patterns": "{kind: attention, projection: {kind: gqa, n_heads: 2}, patterns: [{kind: mine}]}",
            "projections": "{kind: attention, projection: {kind: mine}}",
        }
        names = {
            "ffn": "mine" if family == "ffns" else "swiglu, d_ff: 8",
            "block": blocks.get(family, "{kind: full, n_heads: 2}"),
            "schedule": "mine" if family == "schedules" else "cosine",
        }
        path = tmp_path / "mine.yaml"
        path.write_text(RECIPE.format(module=module, **names))
        return path

    yield recipe
    sys.modules.pop(module, None)


@pytest.mark.parametrize(
    ("family", "base", "body", "why"),
    [
        ("patterns", "PatternConfig", "", r"model\.blocks\.a: 'mine' \(zoo_own_part:Mine\): pairs fails: Mine doe"),
        (
            "patterns",
            "PatternConfig",
            PAIRS.replace("return seq_len", "return seq_len // 0"),
            r"pairs fails: ZeroDivisionError: .* \(zoo_own_part\.py, line \d+, in pairs\)",
        ),
        ("patterns", "PatternConfig", PAIRS.replace("return seq_len", "return 'many'"), r"pairs must give int or fl"),
        ("patterns", "Full", "def resolve(self, d_model, seq_len): pass", r"resolve must give PatternConfig; found n"),
        ("projections", "ProjectionConfig", "", r"resolve fails: Mine does not define resolve"),
        ("projections", "ProjectionConfig", "def resolve(self, *_): pass", r"resolve must give ResolvedProjection"),
        (
            "projections",
            "ProjectionConfig",
            "def resolve(self, *_): return object.__new__(NamesNothing)",
            r"resolve: module fails: AttributeError: .*'NamesNothing'.* 'module'",
        ),
        ("ffns", "FeedForwardConfig", "", r"model\.ffn: 'mine' \(zoo_own_part:Mine\): parameters fails: Mine does not"),
        ("ffns", "FeedForwardConfig", SIZES.replace("2 * d_model", "None"), r"activation_bytes must give int or float"),
        ("mixers", "BlockConfig", "", r"resolve fails: Mine defines neither grid_point nor its own cost and build"),
        ("mixers", "BlockConfig", "def cost(self, *_): return {}", r"cost must give Cost; found a mapping"),
        ("mixers", "BlockConfig", "def cost(self, d_model): pass", r"cost fails: TypeError: .* positional arguments"),
        ("schedules", "ScheduleConfig", "", r"train\.schedule: 'mine' .*: after_warmup\(0\) fails: Mine does not"),
        ("schedules", "ScheduleConfig", "def after_warmup(self, p): return 'low'", r"after_warmup\(0\) must give int"),
    ],
)  # fmt: skip
def test_what_a_config_lacks_is_said_when_the_recipe_is_read(recipe, family, base, body, why):
    with pytest.raises(RecipeError, match=why) as caught:
        load_recipe(recipe(family, base, body, MODULE))
    (problem,) = caught.value.problems
    assert problem.line is not None
    assert "\n" not in problem.message


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ('"zoo_nowhere.at.all:M"', r"module: there is no module 'zoo_nowhere\.at\.all'"),
        ('"zoo_nowhere"', r"module must be 'package\.module:name'; found 'zoo_nowhere'"),
        ("__name__", r"module must be 'package\.module:name'; found 'zoo_own_part'"),  # which is imported already
    ],
)
def test_a_wrong_name_of_what_runs_is_said_when_the_recipe_is_read(recipe, target, why):
    with pytest.raises(RecipeError, match=why):
        load_recipe(recipe("ffns", "FeedForwardConfig", SIZES, target=target))


NAMELESS = """\
from typing import ClassVar, Literal
from pydantic import Field
from zoo.blocks import register
from zoo.blocks.patterns.base import PatternConfig
from zoo.blocks.patterns.full_config import Full
from zoo.blocks.positions.base import PositionConfig
from zoo.data.config import ByteTokenizer, DocumentSource, TokenizerConfig
from zoo.evaluation.task import Task
from zoo.feed_forward.base import FeedForwardConfig
from zoo.training.logger_config import LoggerConfig
from zoo.training.optimizers.base import OptimizerConfig
class Own:
    "What several parts of a package share."
class Mine(Own, {base}):
    {tag}: Literal["mine"] = Field("mine", description="Mine.")
    {body}
"""


@pytest.mark.parametrize(
    ("family", "base", "body", "accepted"),
    [
        ("patterns", "PatternConfig", "", False),
        ("patterns", "PatternConfig", "module: ClassVar[str] = 'a:B'", True),
        ("patterns", "Full", "", True),
        ("positions", "PositionConfig", "", False),
        ("positions", "PositionConfig", "module: ClassVar[None] = None", True),  # it turns nothing
        ("ffns", "FeedForwardConfig", "", False),
        ("optimizers", "OptimizerConfig", "", False),
        ("sources", "DocumentSource", "", False),
        ("tokenizers", "TokenizerConfig", "", False),
        ("tokenizers", "ByteTokenizer", "", True),
        ("loggers", "LoggerConfig", "", False),
        ("tasks", "Task", "", False),
        ("tasks", "Task", "def examples(self, model): return []", False),
        (
            "tasks",
            "Task",
            "title: ClassVar = 'x'; measures: ClassVar = 'x'; data_from: ClassVar = 'x'; metrics: ClassVar = ('x',)\n"
            "    def examples(self, model): return []\n"
            "    def score(self, example, answer): pass",
            True,
        ),
    ],
)
def test_a_part_that_does_not_name_what_runs_is_refused(family, base, body, accepted, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "zoo_nameless", raising=False)
    found = FAMILIES[family]
    monkeypatch.setattr(found, "own", {**found.own, "mine": "zoo_nameless:Mine"})
    (tmp_path / "zoo_nameless.py").write_text(NAMELESS.format(base=base, body=body or "pass", tag=found.tag))
    importlib.invalidate_caches()
    if accepted:
        assert found.config_class("mine").__name__ == "Mine"
        return
    with pytest.raises(
        ValueError, match=r"'mine': zoo_nameless:Mine must name what runs, module: ClassVar\[str\] = \"package"
    ) as error:
        found.config_class("mine")
    assert str(error.value).endswith(", or define examples and score") == (family == "tasks")


def test_a_config_under_another_name_is_refused(recipe):
    path = recipe("ffns", "FeedForwardConfig", SIZES, MODULE, kind="other")
    module = path.with_name("zoo_own_part.py")
    module.write_text(module.read_text().replace('register("other"', 'register("mine"'))
    with pytest.raises(RecipeError, match=r"zoo_own_part:Mine must have the default kind 'mine'; found 'other'"):
        load_recipe(path)


def test_a_plugin_that_ends_python_is_refused(recipe):
    path = recipe("ffns", "FeedForwardConfig", SIZES, "import sys\nsys.exit(0)\n")
    with pytest.raises(RecipeError, match=r"plugin 'zoo_own_part' cannot be imported: SystemExit: 0"):
        load_recipe(path)


NO_MIXER = "def cost(self, *_): return Cost({}, {}, 0, 0)\n    def build(self, d_model, part=None): "


@pytest.mark.parametrize(
    ("family", "base", "body", "more", "why"),
    [
        ("ffns", "FeedForwardConfig", SIZES, "", r"feed-forward 'mine': module 'zoo_own_part:M' cannot be loaded: A"),
        (
            "ffns",
            "FeedForwardConfig",
            SIZES,
            MODULE.replace("super().__init__()", "raise KeyError('gain')"),
            r"zoo_own_part:M cannot be made: KeyError: 'gain' \(zoo_own_part\.py, line \d+, in __init__\)",
        ),
        ("ffns", "FeedForwardConfig", SIZES, "def M(config, d_model): return max", r"must make a torch.* found built"),
        ("ffns", "FeedForwardConfig", SIZES, MODULE.replace("forward", "run"), r"M does not define forward"),
        ("mixers", "BlockConfig", NO_MIXER + "return None", "", r"block 'a': what Mine builds must be .*; found None"),
        ("mixers", "BlockConfig", NO_MIXER + "return 1 / 0", "", r"block 'a': Mine cannot be built: ZeroDivisionError"),
        ("patterns", "Full", "", "class M(FullPattern):\n    def __init__(self, *_): 1 / 0", r"pattern 'mine': .*: Ze"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_said_when_the_model_is_built(recipe, family, base, body, more, why):
    with pytest.raises(PartError, match=why) as caught:
        build_model(load_recipe(recipe(family, base, body, more)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "base", "body", "more", "why"),
    [
        (
            "ffns",
            "FeedForwardConfig",
            SIZES,
            MODULE.replace("return self.output(x)", "return None"),
            r"feed-forward 'mine': M.forward must return a tensor as large as its input, \[1, 8, 16\]; found NoneType",
        ),
        (
            "ffns",
            "FeedForwardConfig",
            SIZES,
            MODULE.replace("return self.output(x)", "return x[:, 1:]"),
            r"found \[1, 7, 16\]",
        ),
        (
            "patterns",
            "Full",
            "",
            "class M(FullPattern):\n    def forward(self, queries, source, context, results): return source.keys.v",
            r"pattern 'mine': M.forward must return a zoo.blocks.parts.Attended .*; found Tensor",
        ),
    ],
)
def test_what_a_module_returns_is_checked(recipe, family, base, body, more, why):
    model = build_model(load_recipe(recipe(family, base, body, more)))
    with pytest.raises(PartError, match=why):
        model(torch.zeros(1, 8, dtype=torch.int64))


def test_a_pattern_without_a_cache_trains_and_says_what_generating_needs(recipe):
    module = """
class M(nn.Module):
    def __init__(self, config, projection): super().__init__()
    def forward(self, queries, source, context, results):
        from zoo.blocks.parts import Attended
        return Attended(source.keys.v)
"""
    model = build_model(load_recipe(recipe("patterns", "Full", "", module)))
    model(torch.zeros(1, 8, dtype=torch.int64))
    with pytest.raises(PartError, match=r"pattern 'mine', which is to read a cache, must define keep and cached"):
        model.layers[0].attention.new_cache(1, 8)


def test_one_file_holds_a_part_and_its_module(recipe):
    model = build_model(load_recipe(recipe("ffns", "FeedForwardConfig", SIZES, MODULE)))
    assert model(torch.zeros(1, 8, dtype=torch.int64)).shape[:2] == (1, 8)


def test_an_error_of_a_part_is_one_line_of_a_command(recipe, capsys, monkeypatch):
    body = "def describe(self): return 'x'\n    @property\n    def about_it(self): 1 / 0" + SIZES
    path = recipe("ffns", "FeedForwardConfig", body, MODULE)
    calls = []
    monkeypatch.setattr("zoo.report.show.facts", lambda recipe: calls.append(1) or recipe.model.ffn.about_it)
    assert run(["show", str(path)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert calls
    assert said[0].startswith("an error in zoo_own_part: ZeroDivisionError: division by zero (zoo_own_part.py, line ")
    assert said[0].endswith("in about_it); with ZOO_TRACEBACK=1 the whole traceback is printed")
    assert len(said) == 1
    monkeypatch.setenv("ZOO_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run(["show", str(path)])


def test_an_error_of_the_zoo_itself_is_no_part_of_others(recipe, monkeypatch):
    path = recipe("ffns", "FeedForwardConfig", SIZES, MODULE)
    monkeypatch.setattr("zoo.report.show.facts", lambda recipe: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(["show", str(path)])
