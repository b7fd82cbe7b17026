"""`zoo keys` and the reference page: every key of every config, an example of each that loads, hints after mistakes."""

import json
import re

import pytest
import yaml
from pydantic import BaseModel

from zoo import cli
from zoo.data.config import DataConfig
from zoo.docs import keys_page
from zoo.parts import FAMILIES
from zoo.recipe import ModelConfig, Recipe, load_recipe
from zoo.recipe import keys as recipe_keys
from zoo.recipe.multi_token import MultiToken
from zoo.training.config import CheckpointConfig, EvalConfig, StopAtConfig, TrainConfig

SECTIONS: dict[str, type[BaseModel]] = {
    "": Recipe,
    "model.": ModelConfig,
    "model.multi_token.": MultiToken,
    "data.": DataConfig,
    "train.": TrainConfig,
    "train.checkpoint.": CheckpointConfig,
    "train.stop_at.": StopAtConfig,
    "eval.": EvalConfig,
}
OWN = [key for key in recipe_keys.all_keys() if not key.kinds and key.types != "mapping"]
OF_KINDS = [key for key in recipe_keys.all_keys() if key.path in keys_page.EXAMPLES and key.kinds]


@pytest.fixture(scope="module")
def page() -> str:
    return keys_page.keys_page()


@pytest.fixture
def zoo(capsys):
    def zoo(*arguments):
        code = cli.run(list(arguments))
        return code, *capsys.readouterr()

    return zoo


def test_every_field_of_every_config_is_a_key_with_its_meaning():
    keys = {key.path: key for key in recipe_keys.all_keys() if not key.kinds}
    for section, config in SECTIONS.items():
        for name, field in config.model_fields.items():
            assert field.description is None or field.description == keys[section + name].description
            assert keys[section + name].description
    of_kinds = {(key.name, kind) for key in recipe_keys.all_keys() for kind in key.kinds}
    for family in FAMILIES.values():
        if family.name not in ("loggers",):
            for kind, config in family.classes():
                assert {(name, kind) for name in config.model_fields if name != family.tag} <= of_kinds, kind


@pytest.mark.parametrize("key", OWN + OF_KINDS, ids=lambda key: key.path)
def test_the_example_of_a_key_is_on_the_page_sets_it_and_loads(key, page, tmp_path):
    text = keys_page.example(key)
    value = yaml.safe_load(text)
    for part in key.path.split("."):
        assert part in value, f"the example of {key.path} does not set it"
        value = value[part]
    head = {"name": "name: example\n", "extends": "extends: zoo:tiny/full\n"}
    path = tmp_path / "example.yaml"
    path.write_text("".join(line for name, line in head.items() if name != key.path) + text + "\n")
    load_recipe(path)
    assert f"### {key.path} {{ #{key.path.replace('.', '-')} }}\n\n" in page
    assert f"```yaml\n{text}\n```" in page


def test_fields_of_parts_lead_to_the_pages_of_their_kinds(page):
    (row,) = [line for line in page.splitlines() if line.startswith("| `window` | [mixers]")]
    assert "[nsa](../reference/blocks/nsa.md)" in row
    (row,) = [line for line in page.splitlines() if line.startswith("| `lr` |")]
    assert "[adamw](../reference/parts/optimizers.md#adamw)" in row
    assert "learning rate" in row


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("train.activation_checkpointing", "true or false; default false"),
        ("init_std", "model.init_std"),
        ("train.checkpoint", "train.checkpoint.keep   whole number or all, >= 1"),
        ("model.ffn", "kinds: swiglu, geglu, gelu, relu2, moe"),
        ("model.blocks.mine.window", "(of window, nsa, ansa)"),
        ("model.blocks.mine", "Attention blocks by the name"),
        ("data.sources[3].paths", "data.sources.<n>.paths"),
        ("model.d_model", "required"),
    ],
)
def test_keys_are_found_as_errors_spell_them(zoo, asked, shown):
    code, out, err = zoo("keys", asked)
    assert (code, err) == (0, "")
    assert shown in out


@pytest.mark.parametrize(
    ("asked", "shown", "hidden"),
    [
        (
            "model.blocks.mine",
            {"window window", "n_heads full, window,", "chunk chunked"},
            {"low_freq_factor"},
        ),
        ("data.source", {"paths jsonl, parquet,", "proportion all", "on_error text"}, {"window window"}),
        ("data.sources[1]", {"paths jsonl, parquet,", "proportion all"}, set()),
        ("data.tokenizer", {"min_frequency bpe", "path huggingface"}, {" all "}),  # kind byte has no fields
        ("train.schedule", {"decay wsd"}, set()),
    ],
)
def test_a_part_is_described_with_the_fields_of_its_kinds(zoo, asked, shown, hidden):
    out = re.sub(" +", " ", zoo("keys", asked)[1])
    assert "field of kinds value default meaning" in out
    assert {text for text in shown if text not in out} == set()
    assert {text for text in hidden if text in out} == set()


def test_the_holder_of_blocks_has_no_fields_of_its_own(zoo):
    assert "of kinds" not in zoo("keys", "model.blocks")[1]


def test_without_a_key_every_section_is_listed(zoo):
    code, out, _ = zoo("keys")
    assert code == 0
    assert [key.path for key in OWN if key.path not in out] == []
    assert {one["path"] for one in json.loads(zoo("keys", "--json")[1])} >= {key.path for key in OWN}


def test_a_key_that_there_is_not_is_refused_with_the_nearest(zoo):
    assert zoo("keys", "train.workrs", "nonsense_xyz") == (
        2,
        "",
        "train.workrs: no key of a recipe; zoo keys lists them. Did you mean 'train.workers'?\n"
        "nonsense_xyz: no key of a recipe; zoo keys lists them.\n",
    )


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("model.windw", "model.blocks.<name>.window"),  # the right name in the wrong section
        ("trains.workers", "train.workers"),
        ("train.optimiser.lr", "train.optimizer.lr"),
        ("data.max_seq_len", "model.max_seq_len"),
    ],
)
def test_the_nearest_key_has_the_nearest_name(asked, near):
    assert recipe_keys.nearest(asked) == f" Did you mean {near!r}?"


@pytest.mark.slow
def test_the_mistakes_of_a_recipe_end_with_the_command_that_explains_their_keys(zoo):
    sets = ["train.workers=-2", "model.blocks.full.windw=3", "model.layers=full*3 gloabl", "data.seq_len=0"]
    code, out, err = zoo("show", "zoo:tiny/full", *(word for one in sets for word in ("--set", one)))
    assert (code, out) == (2, "")
    hint = err.splitlines()[-1]
    assert hint.startswith("what these keys mean: zoo keys ")
    asked = hint.removeprefix("what these keys mean: zoo keys ").split()
    assert len(asked) == 3
    assert set(asked) <= {"train.workers", "model.blocks.full", "model.layers", "data.seq_len"}
    assert zoo("keys", *asked)[0] == 0


def test_other_refusals_have_no_such_line(zoo):
    assert zoo("show", "nowhere.yaml")[2] == "nowhere.yaml: no such file.\n"


def test_a_section_without_kinds_is_described_by_its_keys_not_by_its_python_class(zoo):
    described = zoo("blocks", "full")[1]
    assert "PositionTemperature" not in described
    assert "mapping with every, scale" in described
    assert [key.path for key in recipe_keys.all_keys() if re.search("[a-z][A-Z]", key.types)] == []
