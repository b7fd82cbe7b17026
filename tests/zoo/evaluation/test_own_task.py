"""A task of another package: known like the zoo's own, in recipes, in `zoo parts`, in the schema and in the docs."""

import re
import sys
import types
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar, Literal

import jsonschema
import numpy as np
import pytest
from pydantic import Field

from tests.zoo.evaluation.subjects import Guesser
from zoo import cli
from zoo.blocks import register
from zoo.cli import parts_text
from zoo.docs.families import family_pages
from zoo.errors import RecipeError
from zoo.evaluation.groups import GROUPS, members
from zoo.evaluation.registry import EvaluationError, make_tasks, task_class
from zoo.evaluation.run import evaluate
from zoo.evaluation.task import Labelled, Metric, Prompt, Row, Task
from zoo.parts import FAMILIES, TASKS
from zoo.recipe import load_recipe
from zoo.recipe.schema import recipe_schema

RECIPE = "extends: zoo:tiny/full\nname: mine\nplugins: [zoo_parity]\neval: {tasks: [%s]}\n"


class Parity(Task):
    """Is the number of ones even?"""

    title: ClassVar[str] = "Parity"
    measures: ClassVar[str] = "counting modulo two"
    data_from: ClassVar[str] = "made by rule"
    metrics: ClassVar = (Metric("accuracy"),)
    task: Literal["parity"] = "parity"
    bits: int = Field(16, ge=2, description="Bits of a row.")

    def examples(self, model):
        return []

    def score(self, example, answer):
        raise NotImplementedError


class Misnamed(Parity):
    task: Literal["other"] = "other"


@pytest.fixture
def path(monkeypatch, tmp_path):
    module = types.ModuleType("zoo_parity")
    module.Parity, module.Misnamed, module.Thing = Parity, Misnamed, object
    monkeypatch.setitem(sys.modules, "zoo_parity", module)
    monkeypatch.setattr(TASKS, "own", dict(TASKS.own))
    register("parity", "zoo_parity:Parity", family="tasks")
    return tmp_path / "mine.yaml"


def test_it_is_known_like_the_zoos_own(path):
    path.write_text(RECIPE % "parity, {task: parity, bits: 8}, niah_single_1")
    recipe = load_recipe(path)
    assert [task.label for task in make_tasks(recipe.eval.tasks)] == ["parity", "parity(bits=8)", "niah_single_1"]
    assert recipe.eval.tasks == ["parity", {"task": "parity", "bits": 8}, "niah_single_1"]  # kept as written
    assert "Bits of a row." in parts_text.as_text("tasks", "parity", 100)
    assert (
        "## parity\n\nIs the number of ones even?\n\n- Measures: counting modulo two."
        in (family_pages()["reference/parts/tasks.md"])
    )
    assert TASKS is FAMILIES["tasks"]


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("partiy", "4:16: eval.tasks[0]: unknown task 'partiy'; known: "),
        ("{task: parity, bit: 8}", "4:31: eval.tasks[0].bit: unknown key 'bit'; known: task, rows, seed, bits. Did"),
        ("{task: parity, bits: 1}", "4:37: eval.tasks[0].bits: must be at least 2; found 1"),
        (
            "niah, {task: niah_single, length: [1]}",
            "4:42: eval.tasks[1].length: unknown key 'length'; known: task, rows,",
        ),
        ("{bits: 3}", "4:16: eval.tasks[0].task: is required"),
        ("7", "4:16: eval.tasks[0]: must be a name, or a mapping with the key task; found 7"),
    ],
)
def test_mistakes_are_named_with_their_place(path, entry, why):
    path.write_text(RECIPE % entry)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert f"{path}:{why}" in str(caught.value)


def test_editors_check_it(path):
    checker = jsonschema.Draft202012Validator(recipe_schema())

    def wrong(*tasks) -> bool:
        return bool(list(checker.iter_errors({"eval": {"tasks": list(tasks)}})))

    assert not wrong("parity", "ruler", {"task": "parity", "bits": 8}, {"task": "ruler", "lengths": [64]})
    assert wrong("partiy")
    assert wrong({"task": "parity", "bit": 8})
    assert wrong({"task": "parity", "bits": 1})


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("zoo_parity:Misnamed", "must have the default task 'mine'; found 'other'"),
        ("zoo_parity:Thing", "must be a subclass of zoo.evaluation.task.Task"),
        ("zoo_no_such_module:Thing", "cannot be loaded from zoo_no_such_module:Thing"),
    ],
)
def test_one_that_cannot_be_used_says_why(path, monkeypatch, target, why):
    monkeypatch.setattr(TASKS, "_offers", ({"mine": target}, {}))
    with pytest.raises(EvaluationError, match=why):
        task_class("mine")
    path.write_text(RECIPE % "mine")
    with pytest.raises(RecipeError, match=why):
        load_recipe(path)


def test_groups_are_of_known_tasks():
    assert {name for tasks in GROUPS.values() for name in tasks} <= set(TASKS.kinds())
    assert members("copy") == ("copy",)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (np.float32(0.25), None),
        (np.bool_(True), None),
        ("high", r"^parity: score must give numbers; found str for 'accuracy'$"),
        (None, r"^parity: score must give numbers; found NoneType for 'accuracy'$"),
    ],
    ids=["float32", "bool of numpy", "text", "none"],
)
def test_a_score_is_a_number_of_python_or_numpy(path, monkeypatch, value, why):
    row = np.arange(4)
    monkeypatch.setattr(Parity, "needs_text", False)
    monkeypatch.setattr(Parity, "examples", lambda self, model: [Labelled(row, row)])
    monkeypatch.setattr(Parity, "score", lambda self, example, answer: Row({"accuracy": value}))
    with nullcontext() if why is None else pytest.raises(EvaluationError, match=why):
        assert evaluate(Guesser(), ["parity"])[0].metrics["accuracy"]["value"] == float(value)


def test_a_score_under_a_name_that_is_no_metric_is_refused(path, monkeypatch):
    """It would be in no result, and nothing would say so."""
    row = np.arange(4)
    monkeypatch.setattr(Parity, "needs_text", False)
    monkeypatch.setattr(Parity, "examples", lambda self, model: [Labelled(row, row)])
    monkeypatch.setattr(Parity, "score", lambda self, example, answer: Row({"score": 1.0}))
    with pytest.raises(EvaluationError, match=r"^parity: score gives 'score'; the metrics are accuracy$"):
        evaluate(Guesser(), ["parity"])


def test_scores_without_a_metric_are_refused(path, monkeypatch):
    row = np.arange(4)
    monkeypatch.setattr(Parity, "needs_text", False)
    monkeypatch.setattr(Parity, "examples", lambda self, model: [Labelled(row, row)])
    monkeypatch.setattr(Parity, "score", lambda self, example, answer: Row({}))
    with pytest.raises(EvaluationError, match=r"^parity: score gives none of the metrics accuracy$"):
        evaluate(Guesser(), ["parity"])


@pytest.mark.parametrize("name", ["title", "metrics", "no metrics"])
def test_a_task_that_does_not_state_what_every_task_states_is_refused_at_once(path, monkeypatch, capsys, name):
    """Not by the list of tasks, a page or the report of a study, which show it."""
    if name == "no metrics":
        monkeypatch.setattr(Parity, "metrics", ())
    else:
        monkeypatch.delattr(Parity, name)
    message = f"task 'parity': .*:Parity must state {name.removeprefix('no ')}$"
    with pytest.raises(EvaluationError, match=message):
        make_tasks(["parity"])
    path.write_text(RECIPE % "parity")
    with pytest.raises(RecipeError, match=f"must state {name.removeprefix('no ')}"):
        load_recipe(path)
    for arguments in (["eval", "--list"], ["eval", "--list", "--json"], ["parts", "tasks", "parity"]):
        assert cli.run(arguments) in (1, 2)
        assert ":Parity must state " in capsys.readouterr().err
    assert cli.run(["parts", "tasks"]) == 0  # the others are listed


def test_examples_of_two_kinds_are_refused(path, monkeypatch):
    row = np.arange(4)
    monkeypatch.setattr(Parity, "needs_text", False)
    monkeypatch.setattr(Parity, "examples", lambda self, model: [Labelled(row, row), Prompt((1,), 1, ())])
    why = "parity: examples must be a list of Choice, a list of Labelled or a list of Prompt; found Labelled and Prompt"
    with pytest.raises(EvaluationError, match=why):
        evaluate(Guesser(), ["parity"])


def test_the_example_of_the_docs_is_scored(monkeypatch):
    """Its examples are yielded one by one."""
    text = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    [code] = [each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Parity" in each]
    module = types.ModuleType("zoo_docs_parity")
    monkeypatch.setitem(sys.modules, "zoo_docs_parity", module)
    exec(code, module.__dict__)
    monkeypatch.setattr(TASKS, "own", dict(TASKS.own))
    register("parity", "zoo_docs_parity:Parity", family="tasks")
    [result] = evaluate(Guesser(), ["parity"], rows=20)
    assert result.rows == 20
    assert result.metrics["accuracy"]["value"] < 0.5
