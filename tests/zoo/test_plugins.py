"""Blocks of another package: a small real one, installed by pip into a folder, used by every command."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.blocks import plugins

pytestmark = pytest.mark.slow
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
        environment = os.environ | {"PYTHONPATH": f"{target}:{ROOT}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "zoo", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
        return done.returncode, done.stdout, done.stderr

    return zoo


@pytest.fixture
def python(target):
    """Run a piece of Python where the package is installed; it must end well."""

    def python(code: str) -> None:
        environment = os.environ | {"PYTHONPATH": f"{target}:{ROOT}", "OMP_NUM_THREADS": "1"}
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


@pytest.fixture
def strangers_run(python, tmp_path) -> Path:
    """A folder with run/ and, beside it, a module that the run names as a plugin; it leaves a mark when imported."""
    shutil.copyfile(PACKAGE / "zoo_average" / "twice.py", tmp_path / "beside.py")
    with open(tmp_path / "beside.py", "a") as file:
        file.write(f"\nopen({str(tmp_path / 'mark')!r}, 'a').write('imported')\n")
    recipe, run = write(tmp_path, "twice", "plugins: [beside]"), tmp_path / "run"
    run.mkdir()
    python(f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import zoo
from zoo.training.final_weights import export
from zoo.runs.folder import RunFolder
recipe, folder = zoo.load_recipe({recipe!r}), RunFolder({str(run)!r})
folder.recipe.write_text(recipe.dump())
export(folder, recipe, zoo.build_model(recipe).state_dict())
""")
    (tmp_path / "mark").unlink()
    return run


def in_folder(target, folder, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": f"{target}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "zoo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


LOOKS = [
    ("show", "run/recipe.yaml"),
    ("compare", "run", "run", "--no-maps"),
    ("generate", "run", "--prompt", "a", "--max-tokens", "1"),
]


def test_plugins_of_a_strangers_run_are_not_imported(strangers_run, target):
    folder = strangers_run.parent
    for command in LOOKS:
        done = in_folder(target, folder, *command)
        assert done.returncode == 2, (command, done.stderr)
        assert "plugin 'beside' of a run folder is not imported" in done.stderr
        assert "--plugin beside" in done.stderr
        assert not (folder / "mark").exists(), command


def test_plugins_of_a_run_that_the_user_names_are_imported(strangers_run, target):
    done = in_folder(target, strangers_run.parent, *LOOKS[1], "--plugin", "beside")
    assert done.returncode == 0, done.stderr
    assert (strangers_run.parent / "mark").exists()


def test_a_folder_that_calls_itself_installed_is_not(strangers_run, target):
    folder = strangers_run.parent
    info = folder / "beside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: beside\nVersion: 1.0\n")
    (info / "RECORD").write_text("beside.py,,\n")
    (info / "top_level.txt").write_text("beside\n")
    (info / "entry_points.txt").write_text("[zoo.blocks]\ntwice = beside:TwiceConfig\n")
    for command in (LOOKS[0], ("blocks",)):
        in_folder(target, folder, *command)
        assert not (folder / "mark").exists(), command


def test_a_recipe_of_the_users_own_names_any_module(strangers_run, target, tmp_path):
    (tmp_path / "own").mkdir()
    recipe = write(tmp_path / "own", "twice", "plugins: [beside]")
    assert in_folder(target, strangers_run.parent, "show", recipe).returncode == 0


def test_all_plugins_of_a_strangers_run_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("zoo_first_of_tests", "zoo_second_of_tests"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError('imported')\n")
    message = (
        "plugins 'zoo_first_of_tests', 'zoo_second_of_tests' of a run folder are not imported, because no installed "
        "package has them and importing runs their code; if you trust them, add --plugin zoo_first_of_tests --plugin "
        "zoo_second_of_tests (in Python: zoo.blocks.load_plugin of each first)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plugins.load_plugins_of_run(["zoo_first_of_tests", "numpy.linalg", "zoo_second_of_tests"])


@pytest.mark.parametrize("stated", ["top_level.txt", "entry_points.txt", None], ids=str)
def test_an_editable_package_is_its_modules_and_not_its_folder(tmp_path, monkeypatch, stated):
    """The folder of an editable package is often the working directory, where anything may lie."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_by_module", plugins._by_module.__wrapped__)
    source, site = tmp_path / "source", tmp_path / "site"
    info = site / "zoo_blocks_of_tests-1.0.dist-info"
    for folder in (source, info):
        folder.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-blocks.of-tests\nVersion: 1.0\n")
    (info / "direct_url.json").write_text(json.dumps({"url": source.as_uri(), "dir_info": {"editable": True}}))
    content = {
        "top_level.txt": "zoo_blocks_of_tests\n",
        "entry_points.txt": "[zoo.blocks]\nx = zoo_blocks_of_tests.x:X\n",
    }
    if stated:
        (info / stated).write_text(content[stated])
    for name in ("zoo_blocks_of_tests", "unpacked_by_tests"):
        (source / f"{name}.py").write_text("raise SystemExit\n")
    sys.path += [str(site), str(source)]
    assert plugins.is_installed("zoo_blocks_of_tests")
    assert not plugins.is_installed("unpacked_by_tests")


def test_installed_plugins_of_a_run_are_imported(python):
    python("""
from zoo.blocks.plugins import is_installed, load_plugin_of_run
load_plugin_of_run("zoo_average.twice")
assert is_installed("numpy.linalg")
assert not any(map(is_installed, ("antigravity", "os", "sys", "pip.__main__", "no_such_module", "tests")))
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
from zoo.counting.model_cost import model_cost
recipe = zoo.load_recipe({write(tmp_path, "average")!r})
model = zoo.build_model(recipe)
assert sum(p.numel() for p in model.parameters()) == model_cost(recipe.model, 8).parameters["total"]
tokens = torch.arange(40)[None]
model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
assert model.layers[1].attention.value.weight.grad.abs().sum() > 0
""")
