"""The recipes that ship: each loads, resolves, and keeps what its family promises."""

from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from zoo.counting.model_cost import model_cost
from zoo.recipe import load_recipe
from zoo.recipe.schema import recipe_schema
from zoo.recipe.yaml_reader import read_recipe
from zoo.study.config import load_study
from zoo.study.equality import unequal
from zoo.study.expand import expand

FOLDER = Path(__file__).parents[2] / "recipes"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if not path.name.startswith("study"))
STUDIES = sorted(FOLDER.rglob("study*.yaml"))
RECIPES = [path for path in FILES if not path.name.startswith(("_", "study"))]
FAMILIES = {"tiny": 0.03, "340m": 0.02, "1b3": 0.02}
MEMBERS = {"full", "mla", "gla", "nsa", "ansa"}


def name(path: Path) -> str:
    return str(path.relative_to(FOLDER))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_loads_and_resolves(path, tmp_path):
    recipe = load_recipe(path)
    assert recipe.summary
    assert recipe.notes == []
    (tmp_path / "resolved.yaml").write_text(recipe.dump())
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_a_study_has_runs_with_matched_parameters(path):
    runs = expand(load_study(path))
    totals = [model_cost(recipe.model, 1).parameters["total"] for recipe in runs.recipes.values()]
    assert max(totals) <= 1.02 * min(totals)
    assert unequal(runs) == []


def test_names_are_unique_but_for_the_two_spellings_of_one_recipe():
    names = [load_recipe(path).name for path in RECIPES if name(path) != "340m/ansa.yaml"]
    assert len(set(names)) == len(names)
    assert load_recipe(FOLDER / "340m/ansa.yaml").model == load_recipe(FOLDER / "ansa_340m.yaml").model


@pytest.mark.parametrize("path", FILES, ids=name)
def test_editors_agree(path):
    written = read_recipe(path).plain()
    assert [error.message for error in Draft202012Validator(recipe_schema()).iter_errors(written)] == []


@pytest.mark.parametrize(("family", "tolerance"), FAMILIES.items())
def test_a_family_has_the_same_parameters(family, tolerance):
    recipes = {path.stem: load_recipe(path) for path in RECIPES if path.parent.name == family}
    assert {*MEMBERS, "window" if family == "tiny" else "mixed_3to1"} <= recipes.keys()
    totals = {stem: model_cost(recipe.model, 1).parameters["total"] for stem, recipe in recipes.items()}
    assert max(totals.values()) <= (1 + tolerance) * min(totals.values()), totals
    base = {
        key: value for key, value in recipes["full"].model_dump().items() if key in ("data", "train", "eval", "seed")
    }
    for recipe in recipes.values():
        assert {key: recipe.model_dump()[key] for key in base} == base


@pytest.mark.parametrize("family", FAMILIES)
def test_a_member_states_only_its_blocks_its_layers_and_the_width_that_matches_parameters(family):
    for path in (FOLDER / family).glob("[!_]*.yaml"):
        written = yaml.safe_load(path.read_text())
        assert written.keys() <= {"name", "summary", "extends", "model"}
        assert written.get("model", {}).keys() <= {"ffn", "blocks", "layers"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seq_len", [1, 8192, 32768])
def test_ansa_caches_exactly_half_of_nsa(family, seq_len):
    nsa, ansa = (model_cost(load_recipe(FOLDER / family / f"{kind}.yaml").model, seq_len) for kind in ("nsa", "ansa"))
    assert 2 * ansa.cache_nominal_bytes == nsa.cache_nominal_bytes
