"""The study file: every mistake with its place; the runs that follow from it."""

import pytest

from tests.zoo.study.conftest import TINY
from zoo.errors import RecipeError
from zoo.study.config import load_study
from zoo.study.equality import unequal
from zoo.study.expand import expand

FULL, WINDOW = str(TINY / "full.yaml"), str(TINY / "window.yaml")

FULL96 = {"recipe": FULL, "set": {"model.d_model": 96}}


def refusal(path) -> str:
    with pytest.raises(RecipeError) as caught:
        expand(load_study(path))
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seeds": []}, "seeds: must have at least 1"),
        ({"seeds": [1, 1]}, "seeds: must be different; 1 is there twice"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": "1"}, "seeds"),
        ({"seeds": [1], "grid": {"train.optimizer.lr": [1, 2]}}, "must be more than choose_seeds"),
        ({"grid": {"train.optimizer.lr": []}}, "train.optimizer.lr: must have at least 1 value"),
        ({"grid": {"train.optimizer.lr": [1e-3, 1e-3]}}, "must have different values"),
        ({"grid": {"seed": [1, 2]}}, "seed cannot be a key of the grid; write seeds"),
        ({"grid": {"train.optimiser.lr": [1e-3, 2e-3]}}, "train.optimiser: unknown key 'optimiser'"),
        ({"grid": {"train.optimizer.lr": [-1.0, 2e-3]}}, "train.optimizer.lr"),
        ({"match": {"parameters": "0%"}}, "must be a share between 0% and 100%, such as 1%; found '0%'"),
        ({"match": {"parameters": "1e-7%"}, "recipes": [FULL96, "nsa"]}, "cannot be matched to "),
        ({"match": {"flops": "1%"}}, "unknown key 'flops'"),
        (
            {"tasks": [{"task": "mqar", "length": 8}]},
            "unknown key 'length'; known: task, rows, seed",
        ),
        ({"tasks": ["mqra"]}, "mqar"),
        ({"jobs": 0}, "jobs"),
        ({"seedz": [1]}, "Did you mean 'seeds'"),
        ({"name": "a/b"}, "name"),
        ({"set": {"train.duraton": "5ba"}}, "Did you mean 'duration'"),
        ({"set": {"seed": 3}}, "set: seed cannot be set, because a study trains with each of its seeds; write seeds"),
        ({"recipes": ["full", {"recipe": WINDOW, "set": {"seed": 3}}]}, "recipes[1].set: seed cannot be set"),
        ({"recipes": ["full", {"recipe": WINDOW, "set": {"model.d_modl": 64}}]}, "Did you mean 'd_model'"),
        ({"recipes": ["full", {"name": "other"}]}, "names no recipe, and the study has no base"),
        ({"recipes": ["full", "fulll"]}, "no such file"),
        ({"recipes": ["full", "full"]}, "another architecture has the name 'tiny_full'"),
        ({"recipes": [7]}, "must be the path of a recipe, or a mapping"),
        ({"name": None}, "name"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistake_is_refused_with_its_place(write_study, keys, message):
    refused = refusal(write_study(**({"recipes": ["full", "nsa"]} | keys)))
    assert message in refused
    assert "Traceback" not in refused
    assert "study.yaml" in refused or "tiny" in refused


def test_all_mistakes_are_said_at_once_with_their_lines(write_study):
    refused = refusal(write_study(seeds=[1, 1], jobs=0)).splitlines()
    assert len(refused) == 2
    assert all("study.yaml:" in line for line in refused)


def test_a_missing_recipe_is_named_with_the_nearest(write_study, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"extends: {FULL}\n")
    assert "Did you mean 'mine.yaml'" in refusal(write_study(recipes=[{"recipe": "mien.yaml"}]))


def test_the_grid_times_the_choosing_seed_comes_first_then_the_other_seeds(write_study):
    grid = {"train.optimizer.lr": [1e-3, 2e-3], "train.optimizer.weight_decay": [0.1, 0.0]}
    runs = expand(load_study(write_study(grid=grid)))
    ids = [run.id for run in runs.choosing()]
    assert len(ids) == len(set(ids)) == 2 * 4
    assert ids[0] == "tiny_full-lr=0.001-weight_decay=0.1-seed1"
    counting = list(runs.counting("tiny_window", runs.points[3]))
    assert [run.seed for run in counting] == [2, 3, 4]
    recipe = counting[0].recipe
    assert (recipe.train.optimizer.lr, recipe.train.optimizer.weight_decay, recipe.seed) == (2e-3, 0.0, 2)


def test_without_a_grid_every_seed_counts(write_study):
    runs = expand(load_study(write_study()))
    assert list(runs.choosing()) == []
    assert [run.id for run in runs.counting("tiny_full", runs.points[0])] == [
        f"tiny_full-seed{n}" for n in (1, 2, 3, 4)
    ]


def test_settings_are_laid_over_each_other_in_order(write_study):
    entry = {"recipe": WINDOW, "name": "w", "set": {"train": {"batch_size": 4}, "model.blocks.local.window": 32}}
    path = write_study(recipes=["full", entry], set={"train.batch_size": 8, "train.duration": "20ba"})
    full, window = (expand(load_study(path)).recipes[name, ""] for name in ("tiny_full", "w"))
    assert (full.train.batch_size, window.train.batch_size) == (8, 4)
    assert full.train.duration == window.train.duration == "20ba"
    assert window.model.blocks["local"].window == 32


def test_parameters_are_matched_by_the_feed_forward_and_the_change_is_said(write_study):
    entry = {"recipe": FULL, "name": "wide", "set": {"model.ffn.d_ff": 512}}
    runs = expand(load_study(write_study(recipes=["full", entry], match={"parameters": "1%"})))
    (change,) = runs.changes
    assert (change.before, change.after) == (512, 352)
    assert "wide: ffn.d_ff 512 -> 352, parameters" in str(change)
    assert runs.recipes["wide", ""].model.ffn.d_ff == 352


def test_rows_made_by_rule_are_the_same_for_every_seed(write_study):
    recall = str(TINY.parent / "recall" / "full.yaml")
    runs = expand(load_study(write_study(recipes=[{"recipe": recall}])))
    found = [run.recipe.data.source.seed for run in runs.counting("recall_full", runs.points[0])]
    assert found == [1, 1, 1, 1]
    assert "rows made by rule have the seed 1 in every run" in runs.notes[0]


def test_what_differs_beside_the_model_is_a_note(write_study):
    entry = {"recipe": WINDOW, "set": {"train.clip_norm": 0.5}}
    assert any(
        "train.clip_norm is 0.5" in note for note in unequal(expand(load_study(write_study(recipes=["full", entry]))))
    )
    assert unequal(expand(load_study(write_study()))) == []


def test_overrides_reach_the_study_and_its_command_says_them(write_study):
    study = load_study(write_study(), ["seeds=[7]", "set={train.duration: 9ba}"])
    assert study.config.seeds == [7]
    assert expand(study).recipes["tiny_full", ""].train.duration == "9ba"
    assert study.command().endswith("study.yaml --set 'seeds=[7]' --set 'set={train.duration: 9ba}'")
