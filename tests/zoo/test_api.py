"""The Python interface: recipes from mappings, comparisons and runs as objects, what they print, notebook progress."""

import json
import sys
import types

import pytest
from rich.console import Console

import zoo
from zoo.errors import RecipeError, ZooError
from zoo.evaluation.results import Result
from zoo.recipe import ModelConfig, load_recipe
from zoo.runs.folder import RunFolder
from zoo.sparkline import sparkline
from zoo.training.notebook import Cell
from zoo.training.screen import Screen

MINE = {
    "name": "mine",
    "extends": "zoo:tiny/_base",
    "model": {"blocks": {"local": {"kind": "window", "n_heads": 4, "window": 64}}, "layers": ["local", "local"]},
}


def test_a_mapping_is_the_recipe_that_its_yaml_is(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(MINE))  # JSON is YAML
    assert load_recipe(MINE) == load_recipe(path)
    assert load_recipe(MINE, ["train.duration=7ba"]).train.duration == "7ba"
    assert MINE["extends"] == "zoo:tiny/_base", "the mapping is left as it was"


def test_a_recipe_can_be_loaded_again_with_overrides():
    recipe = load_recipe("zoo:quickstart")
    assert load_recipe(recipe) == recipe
    assert load_recipe(recipe, ["seed=5"]).seed == 5


def test_the_base_of_a_mapping_is_relative_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "base.yaml").write_text("extends: zoo:tiny/full\nseed: 4\n")
    monkeypatch.chdir(tmp_path)
    assert load_recipe({"name": "mine", "extends": "base.yaml"}).seed == 4
    with pytest.raises(RecipeError, match=r"^recipe: extends: no such file: nowhere\.yaml"):
        load_recipe({"name": "mine", "extends": "nowhere.yaml"})


def test_every_mistake_of_a_mapping_is_told_with_its_key():
    wrong = {**MINE, "model": {**MINE["model"], "d_model": 0, "layers": "local gloabl"}, "traing": {}}
    with pytest.raises(RecipeError) as refused:
        load_recipe(wrong)
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert any(line.startswith("recipe: model.d_model: must be at least 1; found 0.") for line in lines)
    assert any("unknown block 'gloabl'" in line for line in lines)
    assert any("unknown key 'traing'" in line and "Did you mean 'train'?" in line for line in lines)


def test_what_no_recipe_can_hold_is_refused():
    around: dict = {"name": "mine"}
    around["model"] = around
    for values, message in (
        ({"name": {1, 2}}, "must hold mappings, lists, text, numbers, true, false and null; found set"),
        ({1: "mine"}, "a key must be text; found 1"),
        (around, "nested deeper than 100"),
        ({}, "name: is required"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe(values)


def test_reprs_are_one_line():
    recipe = load_recipe("zoo:quickstart")
    assert repr(recipe) == "<Recipe quickstart: (ansa.local ansa.global)*2, 4 layers, d_model 128, context 256>"
    assert str(recipe) == repr(recipe)
    numbers = {"value": 0.98765, "low": 0.975, "high": 0.99}
    result = Result("mqar", "mqar", {}, 1, 0, 500, "", {"accuracy": numbers})
    assert repr(result) == "<Result mqar: accuracy 0.9877 (0.975 to 0.99), 500 rows>"


def test_describe_is_what_zoo_show_prints(capsys):
    from zoo import cli

    assert cli.run(["show", "zoo:tiny/full"]) == 0
    shown = zoo.describe("zoo:tiny/full")
    assert shown == capsys.readouterr().out
    assert repr(shown) == str(shown)
    assert "parameters" in zoo.describe(MINE, ["model.layers=local*9"])
    assert shown._repr_html_().startswith("<pre>tiny_full")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    page = tmp_path_factory.mktemp("page") / "page.html"
    return zoo.compare([MINE, load_recipe("zoo:tiny/full"), "zoo:tiny/ansa"], html=page, maps=False), page


def test_a_comparison_takes_mappings_recipes_and_names(comparison):
    found, page = comparison
    assert [column["label"] for column in found.columns] == ["mine", "tiny_full", "tiny_ansa"]
    assert [column["error"] for column in found.columns] == [None, None, None]
    (total,) = [row for row in found.rows if (row["group"], row["label"]) == ("parameters", "total")]
    assert total["tiny_full"] == found.columns[1]["parameters"]["total"]
    assert "tiny_ansa" in str(found)
    assert repr(found) == str(found)
    assert found._repr_html_().count("<th>tiny_full</th>") == 1
    assert "tiny_ansa" in page.read_text()


@pytest.mark.parametrize("one", [[MINE], MINE, "zoo:tiny/full", load_recipe(MINE)])
def test_a_comparison_is_refused_like_the_command(one):
    with pytest.raises(RecipeError, match=r"must name 2 to 10 recipes or runs; found 1\."):
        zoo.compare(one)


def test_mappings_of_one_name_are_told_apart_by_their_places():
    other = MINE | {"model": {**MINE["model"], "layers": "local*7"}}
    found = zoo.compare([MINE, "zoo:tiny/full", other], overrides="seed=3", seq_lens=128)
    assert [column["label"] for column in found.columns] == ["mine (recipe 1)", "tiny_full", "mine (recipe 3)"]
    (layers,) = [row for row in found.rows if (row["group"], row["label"]) == ("parameters", "total")]
    assert layers["mine (recipe 1)"] != layers["mine (recipe 3)"]
    assert "zoo-recipes" not in str(found)
    assert "128 tokens" in str(found)


@pytest.mark.parametrize("nothing", [3, None, ["zoo:tiny/full"]])
def test_what_is_no_recipe_is_refused_with_what_would_be_one(nothing):
    with pytest.raises(RecipeError, match=r"recipe: must be the path or the name of a recipe, a mapping .* found "):
        zoo.load_recipe(nothing)


def test_one_override_needs_no_list():
    assert zoo.load_recipe("zoo:tiny/full", "seed=3").seed == 3


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "done")
    folder.path.mkdir(parents=True)
    folder.recipe.write_text(load_recipe("zoo:tiny/full").dump())
    records = [{"batch": i, "tokens": 64 * i, "time_s": float(i), "loss": 5.0 / i} for i in range(1, 6)]
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    return zoo.Run(folder.path)


def test_a_run_has_its_recipe_and_its_numbers(run):
    assert run.recipe == load_recipe("zoo:tiny/full")
    assert run.summary is None
    assert [record["loss"] for record in run.metrics] == [5.0, 2.5, 5 / 3, 1.25, 1.0]
    assert repr(run) == f"<run {run.path}: stopped, 5 batches, 320 tokens>"
    assert "<polyline" in run._repr_html_()
    assert f"run {run.path}: stopped" in " ".join(zoo.describe(run).split())  # a long path ends the line
    found = zoo.compare([run, "zoo:tiny/ansa"])
    assert [column["label"] for column in found.columns] == ["done", "tiny_ansa"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ZooError, match=r"recipe\.yaml: no such file; not a run folder"):
        zoo.Run(tmp_path)


def test_every_name_of_the_package_is_there():
    assert set(zoo.__all__) <= set(dir(zoo))
    assert all(callable(getattr(zoo, name)) for name in zoo.__all__)


class Display:
    """IPython's handle of a display, kept in a list."""

    def __init__(self):
        self.shown = []

    def update(self, html):
        self.shown.append(html)


def test_a_cell_shows_bar_curve_and_numbers_and_is_drawn_at_most_twice_a_second():
    display = Display()
    cell = Cell(display, total=1000)
    for batch in range(1, 1001):
        cell.update(batch, 5.0 / batch, 12_345.0)
    cell.close()
    assert len(display.shown) < 20
    assert '<progress value="1000" max="1000">' in display.shown[-1]
    assert "<polyline" in display.shown[-1]
    assert "batch 1,000/1,000, loss 0.0050, 12,345 tokens/s" in display.shown[-1]


def test_a_training_in_a_notebook_draws_into_its_cell(monkeypatch):
    display = Display()
    module = types.ModuleType("IPython.display")
    module.HTML = lambda text: text
    module.display = lambda html, display_id: display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    screen = Screen(console=Console(force_jupyter=True, quiet=True))
    screen.start(types.SimpleNamespace(total=4), from_batch=0)
    for batch in (1, 2, 3, 4):
        screen({"batch": batch, "loss": 2.0, "tokens_per_s": 100.0, "lr": 0.1})
    screen.close()
    assert "batch 4/4, loss 2.0000" in display.shown[-1]


def test_a_notebook_without_ipython_gets_lines(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    assert Cell.shown(4) is None


def test_a_sparkline_leaves_out_what_is_no_number():
    assert sparkline([(1, 2.0)]) == ""
    assert sparkline([(1, float("nan")), (2, 3.0)]) == ""
    drawn = sparkline([(i, 5.0 / i) for i in range(1, 5001)])
    assert drawn.count(",") <= 402
    assert 'aria-label="curve from 5 to 0.001"' in drawn
    assert "nan" not in sparkline([(1, 2.0), (2, float("inf")), (3, 2.0)])


@pytest.mark.parametrize("recipe", [MINE, "zoo:tiny/full", load_recipe(MINE).model])
def test_a_model_is_built_from_whatever_names_a_recipe(recipe):
    config = recipe if isinstance(recipe, ModelConfig) else load_recipe(recipe).model
    model = zoo.build_model(recipe, device="meta")
    assert len(model.layers) == len(config.expanded())
