"""`zoo init`: every starter is a recipe that loads, checked by the schema beside it; nothing is overwritten."""

import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from zoo import cli
from zoo.blocks.registry import block_kinds
from zoo.recipe import load_recipe

KINDS = [kind for kind, _ in block_kinds()]


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    """Run `zoo init` in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def init(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(["init", *arguments])
        return code, *capsys.readouterr()

    return init


def test_without_arguments_it_writes_a_recipe_and_its_schema_here(init, tmp_path):
    code, out, err = init()
    assert (code, err) == (0, "")
    assert out.startswith("wrote recipe.yaml and recipe.schema.json, which editors check it against\n")
    assert out.endswith("zoo train recipe.yaml\n")
    text = Path("recipe.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    recipe = load_recipe("recipe.yaml")
    assert [layer.name for layer in recipe.model.expanded()] == ["local", "local", "local", "global"] * 2
    assert recipe.name == tmp_path.name
    jsonschema.validate(yaml.safe_load(text), json.loads(Path("recipe.schema.json").read_text()))


@pytest.mark.parametrize("kind", KINDS)
def test_from_a_kind_of_block(init, kind):
    assert init("mine.yaml", "--from", kind)[0] == 0
    recipe = load_recipe("mine.yaml")
    assert recipe.name == "mine"
    assert kind in {layer.kind for layer in recipe.model.expanded()}


@pytest.mark.parametrize("name", ["zoo:340m/nsa", "340m/nsa", "340m/nsa.yaml"])
def test_from_a_recipe_of_the_package(init, name):
    assert init("new/folder", "--from", name)[0] == 0
    recipe = load_recipe("new/folder/recipe.yaml")
    assert recipe.name == "folder"
    assert recipe.model == load_recipe("zoo:340m/nsa").model


def test_the_lines_in_comments_are_valid_when_uncommented(init):
    init("--from", "tiny/full", "mine.yaml")
    head, _, commented = Path("mine.yaml").read_text().partition("# model:\n")
    keys = [re.split(" {3,}", line.removeprefix("# "))[0] for line in commented.replace("...", "full*2").splitlines()]
    body = ["model:", *(line if line.endswith(":") else f"  {line.strip()}" for line in keys)]
    Path("mine.yaml").write_text(head + "\n".join(body) + "\n")
    assert load_recipe("mine.yaml").model.max_seq_len == 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "anza"], "--from: no block kind (attention, full, "),
        (["--from", "zoo:tiny/ful"], "Did you mean 'zoo:tiny/full'?"),
        (["taken.yaml"], "taken.yaml: exists already, and zoo init overwrites nothing; name another file or folder"),
        (["taken"], "taken/recipe.yaml: exists already"),
        (["taken.yaml/below"], "taken.yaml/below: cannot be made: Not a directory"),
    ],
)
def test_what_cannot_be_written_is_one_line(init, tmp_path, arguments, message):
    (tmp_path / "taken.yaml").write_text("mine")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "recipe.yaml").symlink_to("/nowhere/at/all")
    code, out, err = init(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert (tmp_path / "taken.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["2026", "1e3", "null", "true", "a b"])
def test_a_folder_may_have_any_name(init, name):
    assert init(name)[0] == 0
    assert load_recipe(f"{name}/recipe.yaml").name == name.replace(" ", "_")


def test_a_fifo_of_the_schemas_name_is_kept(init, tmp_path):
    os.mkfifo(tmp_path / "recipe.schema.json")
    assert "recipe.schema.json is kept as it was" in init()[1]
    assert (tmp_path / "recipe.schema.json").is_fifo()


def test_another_file_of_the_schemas_name_is_kept(init, tmp_path):
    (tmp_path / "recipe.schema.json").write_text('{"title": "mine"}')
    assert "recipe.schema.json is kept as it was" in init()[1]
    assert (tmp_path / "recipe.schema.json").read_text() == '{"title": "mine"}'


@pytest.mark.parametrize("folder", ["späße und mehr", "-", "...", "a" * 200])
def test_the_name_is_one_that_recipes_may_have(init, folder):
    assert init("--", folder)[0] == 0
    assert load_recipe(Path(folder) / "recipe.yaml").name
