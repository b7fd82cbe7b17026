"""Recipes of the package by their names, wherever the path of a recipe may stand, and what `zoo recipes` lists."""

import json
from pathlib import Path

import pytest

from zoo import cli
from zoo.errors import RecipeError
from zoo.recipe import load_recipe, shipped
from zoo.report.columns import load_columns
from zoo.study.config import load_study
from zoo.study.expand import expand

ROOT = Path(__file__).parents[2]


def test_every_file_of_the_folder_has_a_name():
    files = {path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in ROOT.glob("recipes/**/*.yaml")}
    assert {name.removeprefix("zoo:") for name in shipped.names()} == files
    assert len(files) > 20


@pytest.mark.parametrize("name", ["zoo:tiny/full", "zoo:tiny/full.yaml", "zoo:340m/ansa"])
def test_a_name_is_read_like_the_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = ROOT / "recipes" / f"{name.removeprefix('zoo:').removesuffix('.yaml')}.yaml"
    assert load_recipe(name) == load_recipe(file)


def test_a_recipe_of_the_users_folder_extends_one_of_the_package(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nextends: zoo:tiny/full\nmodel: {max_seq_len: 512}\n")
    recipe = load_recipe(path)
    assert recipe.model.max_seq_len == 512
    assert recipe.model.blocks == load_recipe("zoo:tiny/full").model.blocks


def test_a_base_of_the_package_extends_its_neighbours(tmp_path):
    """The files of the package name each other by relative paths."""
    (tmp_path / "mine.yaml").write_text("name: mine\nextends: zoo:moe/tiny\n")
    assert [layer.ffn_name for layer in load_recipe(tmp_path / "mine.yaml").model.expanded()] == ["dense", *["moe"] * 3]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("zoo:tiny/ful", "the package has no recipe 'zoo:tiny/ful'; zoo recipes lists them. Did you mean 'zoo:tiny/fu"),
        ("zoo:full_340m", "zoo recipes lists them. Did you mean 'zoo:340m/full'?"),
        ("zoo:1b3_mixed_3to1", "zoo recipes lists them. Did you mean 'zoo:1b3/mixed_3to1'?"),
        ("zoo:../recipes/tiny/full", "the package has no recipe"),
        ("'zoo:'", "the package has no recipe 'zoo:'; zoo recipes lists them."),
        ("recipes/tiny/_base.yaml", "no such file: .* The recipe of this name in the package is zoo:tiny/_base"),
        ("tiny/full", "no such file: .* The recipe of this name in the package is zoo:tiny/full"),
    ],
)
def test_a_name_that_there_is_not_is_refused_at_its_place(written, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nextends: {written}\n")
    with pytest.raises(RecipeError, match=message) as refused:
        load_recipe(path)
    assert str(refused.value).startswith(f"{path}:2:10: extends: ")


def test_a_mistake_over_a_recipe_of_the_package_is_at_the_users_place(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nextends: zoo:tiny/full\nmodel: {d_model: 0}\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml:3:18: model\.d_model: must be at least 1"):
        load_recipe(path)


def test_names_stand_in_comparisons_and_studies(tmp_path):
    columns = load_columns(["zoo:tiny/full", "zoo:tiny/ansa"])
    assert [column.label for column in columns] == ["tiny_full", "tiny_ansa"]
    study = tmp_path / "study.yaml"
    study.write_text("name: two\nrecipes: [zoo:tiny/full, zoo:tiny/window]\nseeds: [1, 2]\n")
    assert list(expand(load_study(study)).architectures) == ["tiny_full", "tiny_window"]
    study.write_text("name: two\nrecipes: [zoo:tiny/full, zoo:tiny/widow]\nseeds: [1, 2]\n")
    with pytest.raises(RecipeError, match=r"study\.yaml:2:26: recipes\[1\]: the package has no recipe 'zoo:tiny/wid"):
        expand(load_study(study))
    assert load_study("zoo:studies/asa_small/study").config.name == "asa_small"


def test_the_list_has_every_name_with_its_line(capsys):
    assert cli.run(["recipes", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(found) == shipped.names()
    assert all(one["summary"] for one in found.values())
    assert found["zoo:tiny/_base"]["kind"] == "base"
    assert found["zoo:studies/asa_small/study"]["kind"] == "study"
    assert found["zoo:tiny/full"]["kind"] == "recipe"
    assert found["zoo:tiny/full"]["summary"] == "Full attention, grouped queries"
    assert cli.run(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in found if name not in shown] == []


def test_a_working_directory_that_was_removed_is_no_traceback(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert load_recipe("zoo:quickstart").name == "quickstart"
