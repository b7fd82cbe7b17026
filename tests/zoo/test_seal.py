"""Checksums of the YAML files in run folders, and whose word a recipe's plugins are."""

import sys

import pytest

from zoo.errors import RecipeError
from zoo.recipe import load_recipe
from zoo.recipe.seal import in_run_folder, seal_problem, sealed

RECIPE = """\
name: a
model:
  d_model: 16
  vocab_size: 264
  max_seq_len: 32
  ffn: {kind: swiglu, d_ff: 32}
  blocks: {full: {kind: full, n_heads: 2}}
  layers: full
"""


def test_a_changed_character_shows():
    text = sealed(RECIPE)
    assert seal_problem(text) is None
    assert seal_problem(RECIPE) is None
    assert "its last line does not match" in seal_problem(text.replace("16", "17"))


def test_an_edited_recipe_is_refused_in_its_run_folder_alone(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text("{}")
    for folder in (tmp_path, run):
        (folder / "recipe.yaml").write_text(sealed(RECIPE))
        assert load_recipe(folder / "recipe.yaml").name == "a"
        (folder / "recipe.yaml").write_text(sealed(RECIPE).replace("name: a", "name: b"))
    assert load_recipe(tmp_path / "recipe.yaml").name == "b"
    with pytest.raises(RecipeError, match=r"recipe\.yaml: damaged or edited: .* end it with the line"):
        load_recipe(run / "recipe.yaml")
    (run / "recipe.yaml").write_text(RECIPE)
    assert load_recipe(run / "recipe.yaml").name == "a"


def test_a_recipe_that_was_cut_at_a_line_is_refused_in_its_run_folder(tmp_path):
    """What is left is often a recipe too, with defaults in the place of what is gone."""
    path = tmp_path / "recipe.yaml"
    for name in ("data.json", "summary.json"):
        (tmp_path / name).write_text("{}")
    lines = sealed(RECIPE + "seed: 5\ntrain: {duration: 5ba}\n").splitlines(keepends=True)
    path.write_text("".join(lines))
    assert load_recipe(path).seed == 5
    for n in (len(lines) - 1, len(lines) - 2):
        path.write_text("".join(lines[:n]))
        with pytest.raises(RecipeError, match=r"recipe\.yaml: cut off: its last line, the checksum, is missing"):
            load_recipe(path)
    path.write_text(RECIPE + "# checksum of the lines above: edited\n")
    assert load_recipe(path).seed == 17
    (tmp_path / "data.json").unlink()  # a run of a version that wrote no checksums
    path.write_text(RECIPE)
    assert load_recipe(path).name == "a"


@pytest.mark.parametrize(
    "name", ["model.yaml", "metrics.jsonl", "checkpoints", "model.safetensors", "environment.json"]
)
def test_where_runs_are(tmp_path, name):
    assert not in_run_folder(tmp_path / "recipe.yaml")
    (tmp_path / name).mkdir()
    assert in_run_folder(tmp_path / "recipe.yaml")
    assert in_run_folder(tmp_path / "checkpoints" / "other.yaml")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.yaml").symlink_to(tmp_path / "recipe.yaml")
    assert in_run_folder(tmp_path / "elsewhere" / "link.yaml")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module on sys.path that belongs to no package, and the file that importing it makes."""
    (tmp_path / "modules").mkdir()
    mark = tmp_path / "imported"
    (tmp_path / "modules" / "strange_module_of_tests.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield mark
    sys.modules.pop("strange_module_of_tests", None)


PLUGINS = "plugins: [strange_module_of_tests]\n"


def run_folder(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.yaml").write_text("")
    return run


def test_a_run_that_extends_a_file_beside_it_brings_no_plugins(tmp_path, module):
    run = run_folder(tmp_path)
    (tmp_path / "beside.yaml").write_text(PLUGINS + RECIPE)
    (run / "recipe.yaml").write_text("extends: ../beside.yaml\n")
    with pytest.raises(RecipeError, match=r"of a run folder is not imported.*--plugin strange_module_of_tests"):
        load_recipe(run / "recipe.yaml")
    assert not module.exists()


def test_a_recipe_that_extends_one_of_a_run_brings_no_plugins(tmp_path, module):
    run = run_folder(tmp_path)
    (run / "recipe.yaml").write_text(PLUGINS + RECIPE)
    (tmp_path / "mine.yaml").write_text("extends: run/recipe.yaml\n")
    with pytest.raises(RecipeError, match="of a run folder is not imported"):
        load_recipe(tmp_path / "mine.yaml")
    assert not module.exists()


def test_plugins_on_the_users_word_are_imported(tmp_path, module):
    run = run_folder(tmp_path)
    (run / "recipe.yaml").write_text(RECIPE)
    load_recipe(run / "recipe.yaml", ["plugins=[strange_module_of_tests]"])
    assert module.exists()
