"""The JSON Schema that editors use agrees with the loader on what is written in a recipe."""

import pytest
from jsonschema import Draft202012Validator

from zoo.blocks import registry
from zoo.recipe.schema import recipe_schema

BLOCK = {"kind": "window", "n_heads": 4, "window": 32}
RECIPE = {
    "extends": "base.yaml",
    "name": "good",
    "model": {"d_model": 64, "ffn": {"kind": "gelu"}, "blocks": {"local": BLOCK}, "layers": "local*3 ..."},
    "data": {"source": {"kind": "text", "paths": ["a"]}, "tokenizer": {"kind": "byte"}},
    "train": {"duration": "15Btok", "optimizer": {"lr": 1e-3}},
}


@pytest.fixture(scope="module")
def validator():
    Draft202012Validator.check_schema(recipe_schema())
    return Draft202012Validator(recipe_schema())


def changed(path: str, value) -> dict:
    """RECIPE with one value put at a path."""
    keys = path.split(".")

    def put(node, keys):
        return value if not keys else {**node, keys[0]: put(node.get(keys[0], {}), keys[1:])}

    return put(RECIPE, keys)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "good"),
        ("model.layers", ["local", ["local"], {"repeat": 3, "of": ["local", {"use": "local", "with": {"window": 3}}]}]),
        ("model.blocks.local", {"window": 3}),  # the kind is inherited
        ("model.blocks.a", {"kind": "attention", "projection": {"kind": "mla", "q_rank": 8}}),
        ("model.blocks.a", {"kind": "ansa", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("data.source", {"kind": "huggingface", "path": "x", "streaming": True}),
        ("model.ffn", None),
        ("model.ffns", {"dense": {"kind": "gelu", "d_ff": 8}, "wide": {"d_ff": 9}}),
        ("model.ffn_layers", "dense*3 wide ... cut"),
        ("model.ffn_layers", ["dense", {"use": "wide", "with": {"d_ff": 10}}, "...", "cut"]),
    ],
)
def test_accepted(validator, path, value):
    assert [error.message for error in validator.iter_errors(changed(path, value))] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("nmae", "x"),
        ("name", "../x"),
        ("model.d_model", "64"),
        ("model.d_model", 0),
        ("model.layers", 5),
        ("model.layers", []),
        ("model.layers", [{"repeat": 0, "of": ["a"]}]),
        ("model.layers", [{"use": "a", "whit": {}}]),
        ("model.blocks.3x", BLOCK),
        ("model.ffns", {"3x": {"d_ff": 8}}),
        ("model.ffns", {"dense": {"kind": "gelu", "dff": 8}}),
        ("model.ffn_layers", 5),
        ("model.blocks.local", {"kind": "windw"}),
        ("model.blocks.local.windw", 3),
        ("model.blocks.local.window", 0),
        ("model.blocks.a", {"kind": "attention", "projection": {"kind": "mla", "n_kv_heads": 8}}),
        ("data.source", {"kind": "text", "field": "x"}),
        ("data.source", {"kind": "txt"}),
        ("train.duration", "soon"),
        ("train.optimizer.lr", 0),
    ],
)
def test_refused(validator, path, value):
    assert not validator.is_valid(changed(path, value))


def test_every_kind_and_every_field_is_described():
    schema = recipe_schema()
    branches = schema["$defs"]["Block"]["allOf"]
    assert [branch["if"]["properties"]["kind"]["const"] for branch in branches] == registry.kinds()
    for branch in branches:
        fields = schema["$defs"][branch["then"]["$ref"].rsplit("/", 1)[-1]]["properties"]
        assert all(field.get("description") for field in fields.values()), branch
