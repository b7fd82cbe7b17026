"""Blocks of another package: a small real one, installed by pip into a folder, used by every command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).with_name("plugin_package")
ROOT = Path(__file__).parents[2]
RECIPE = """\
name: averaged
extends: {root}/recipes/tiny/full.yaml
{more}
model:
  blocks: {{mine: {{kind: {kind}, width: 16}}}}
  layers: full mine full mine
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """A folder with the package installed in it, without a network."""
    source = tmp_path_factory.mktemp("source") / "package"
    shutil.copytree(PACKAGE, source)
    folder = tmp_path_factory.mktemp("target")
    options = ["--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def zoo(target):
    """Run a command where the package is installed: (exit code, standard output, standard error)."""

    def zoo(*arguments: str) -> tuple[int, str, str]:
        environment = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "zoo", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
        return done.returncode, done.stdout, done.stderr

    return zoo


@pytest.fixture
def python(target):
    """Run a piece of Python where the package is installed; it must end well."""

    def python(code: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr

    return python


def write(folder: Path, kind: str, more: str = "") -> str:
    path = folder / f"{kind}.yaml"
    path.write_text(RECIPE.format(root=ROOT, kind=kind, more=more))
    return str(path)


WRECK = "note: block kind 'wreck' cannot be loaded from zoo_average.wreck:WreckConfig: libwreck.so is missing\n"


def test_blocks_and_schema_know_it_and_name_the_broken_one(zoo):
    code, out, err = zoo("blocks")
    assert (code, err) == (0, WRECK)
    assert "average" in out
    assert "causal mean of values" in out
    assert "Channels that are averaged." in zoo("blocks", "average")[1]
    code, out, err = zoo("schema")
    assert (code, err) == (0, WRECK)
    definitions = json.loads(out)["$defs"]
    assert definitions["AverageConfig"]["properties"]["width"]["default"] == 32
    assert not any("Wreck" in name for name in definitions)


def test_show_compare_and_cost_take_it_like_a_built_in(zoo, tmp_path):
    recipe = write(tmp_path, "average")
    code, out, err = zoo("show", recipe, "--json")
    assert (code, err) == (0, "")
    assert [layer["kind"] for layer in json.loads(out)["layers"]] == ["full", "average"] * 2
    page = tmp_path / "page.html"
    code, out, err = zoo("compare", "recipes/tiny/full.yaml", recipe, "--json", "--html", str(page))
    assert (code, err) == (0, "")
    column = json.loads(out)["columns"][1]
    assert column["error"] is None
    assert column["layers"][1]["kind"] == "average"
    assert column["receptive_field"]["256"]["layers"] == 1
    assert "no attention map: Average is not made of patterns" in page.read_text()
    code, out, _ = zoo("cost", recipe)
    assert code == 0
    assert "Activations of average are not counted" in out


def test_a_recipe_that_names_the_broken_kind_says_why(zoo, tmp_path):
    recipe = write(tmp_path, "wreck")
    code, out, err = zoo("show", recipe)
    assert (code, out) == (2, "")
    assert f"{recipe}:5:25: model.blocks.mine.kind: block kind 'wreck' cannot be loaded" in err
    assert "Traceback" not in err


def test_plugins_of_a_recipe_are_imported_before_its_blocks(zoo, python, tmp_path):
    assert zoo("show", write(tmp_path, "twice"))[0] == 2
    recipe = write(tmp_path, "twice", "plugins: [zoo_average.twice]")
    code, out, err = zoo("show", recipe, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["layers"][1]["kind"] == "twice"
    python(f"""
import zoo
from pathlib import Path
recipe = zoo.load_recipe({recipe!r})
Path({recipe!r}).with_name("resolved.yaml").write_text(recipe.dump())
assert zoo.load_recipe({str(tmp_path / "resolved.yaml")!r}) == recipe
""")


def test_a_run_with_a_plugin_says_what_to_import_before_it_is_loaded(python, tmp_path):
    recipe, run = write(tmp_path, "twice", "plugins: [zoo_average.twice]"), tmp_path / "run"
    run.mkdir()
    python(f"""
import zoo
from zoo.training.export import export
from zoo.training.run_folder import RunFolder
recipe, folder = zoo.load_recipe({recipe!r}), RunFolder({str(run)!r})
folder.recipe.write_text(recipe.dump())
export(folder, recipe, zoo.build_model(recipe).state_dict())
""")
    python(f"""
import zoo, zoo.blocks
from zoo.errors import ZooError
try:
    zoo.load({str(run)!r})
except ZooError as error:
    assert str(error).endswith("first: zoo.blocks.load_plugin('zoo_average.twice')"), error
else:
    raise AssertionError("a module was imported because a file named it")
zoo.blocks.load_plugin("zoo_average.twice")
zoo.load({str(run)!r})
""")


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        (
            "[zoo_average.twise]",
            "plugins.0: plugin 'zoo_average.twise' cannot be imported: ModuleNotFoundError: No module",
        ),
        (
            "[zoo_average.wreck]",
            "plugins.0: plugin 'zoo_average.wreck' cannot be imported: RuntimeError: libwreck.so is",
        ),
        ("['os; bad']", "plugins.0: must be text of the form"),
    ],
)
def test_a_plugin_that_fails_is_reported_with_its_place(zoo, tmp_path, plugins, message):
    recipe = write(tmp_path, "average", f"plugins: {plugins}")
    code, _, err = zoo("show", recipe)
    assert code == 2
    assert f"{recipe}:3:11" in err
    assert message in err.replace("plugins[0]", "plugins.0")


def test_it_is_built_and_has_gradients(python, tmp_path):
    python(f"""
import torch, zoo
from zoo.cost import model_cost
recipe = zoo.load_recipe({write(tmp_path, "average")!r})
model = zoo.build_model(recipe)
assert sum(p.numel() for p in model.parameters()) == model_cost(recipe.model, 8).parameters["total"]
tokens = torch.arange(40)[None]
model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
assert model.layers[1].attention.value.weight.grad.abs().sum() > 0
""")
