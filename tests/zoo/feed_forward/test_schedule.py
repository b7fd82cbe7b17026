"""The second schedule: `ffns` and `ffn_layers`, from the recipe to the model, its counts and its tables."""

import json

import pytest
import torch
import yaml

from zoo import cli
from zoo.counting.memory_needed import bytes_needed
from zoo.counting.model_cost import model_cost
from zoo.counting.run_cost import GPUS, step_size
from zoo.errors import RecipeError
from zoo.export.transformers_model import ZooConfig, ZooForCausalLM
from zoo.model import build_model
from zoo.recipe import ModelConfig, load_recipe
from zoo.report.show import as_json, as_text

MODEL = {
    "d_model": 16,
    "vocab_size": 264,
    "max_seq_len": 32,
    "blocks": {"full": {"kind": "full", "n_heads": 2}, "near": {"kind": "window", "n_heads": 2, "window": 4}},
    "layers": "(near full)*3",
    "ffns": {"thin": {"kind": "gelu", "d_ff": 12}, "wide": {"d_ff": 40}},
    "ffn_layers": "thin wide*2 ...",
}


@pytest.fixture
def recipe(tmp_path):
    """Load a recipe of the model above with some keys changed; None takes a key out."""

    def load(*overrides: str, **changes):
        model = {key: value for key, value in {**MODEL, **changes}.items() if value is not None}
        path = tmp_path / "two.yaml"
        path.write_text(yaml.safe_dump({"name": "two", "model": model}))
        return load_recipe(path, overrides)

    return load


def test_each_layer_has_its_own(recipe):
    listed = ["thin", {"use": "wide", "with": {"d_ff": 8}}, {"repeat": 2, "of": ["wide", "thin"]}]
    for ffn_layers, names, widths in (
        ("thin wide*2 ...", ["thin", "wide", "wide"] * 2, [12, 40, 40] * 2),
        ("thin*4 wide ... cut", ["thin"] * 4 + ["wide", "thin"], [12] * 4 + [40, 12]),
        (listed, ["thin", "wide", "wide", "thin", "wide", "thin"], [12, 8, 40, 12, 40, 12]),
    ):
        loaded = recipe(ffn_layers=ffn_layers)
        layers = loaded.model.expanded()
        assert [layer.ffn_name for layer in layers] == names
        assert [layer.feed_forward.d_ff for layer in layers] == widths
        model = build_model(loaded)
        assert [layer.feed_forward.output.in_features for layer in model.layers] == widths
        assert model_cost(loaded.model, 32).parameters["total"] == sum(p.numel() for p in model.parameters())
        matrices = [2 if name == "thin" else 3 for name in names]
        flops = sum(2 * n * 16 * width for n, width in zip(matrices, widths, strict=True))
        assert model_cost(loaded.model, 32).flops_by_part["ffn"] == flops


def test_the_resolved_recipe_loads_again(recipe, tmp_path):
    loaded = recipe(ffn_layers=["thin", {"use": "wide", "with": {"d_ff": 8}}, "thin*4"])
    (tmp_path / "again.yaml").write_text(loaded.dump())
    assert load_recipe(tmp_path / "again.yaml") == loaded


def test_a_base_with_one_feed_forward_can_be_changed(recipe, tmp_path):
    recipe(ffn={"d_ff": 8}, ffns=None, ffn_layers=None)
    child = tmp_path / "child.yaml"
    written = {"ffn": None, "ffns": MODEL["ffns"], "ffn_layers": "wide*6"}
    child.write_text(yaml.safe_dump({"name": "child", "extends": "two.yaml", "model": written}))
    assert {layer.ffn_name for layer in load_recipe(child).model.expanded()} == {"wide"}
    assert load_recipe(child).notes == ["model.ffns: defined but not in the schedule: thin"]


def test_memory_counts_each_layers_own(recipe):
    thin, wide = (recipe(ffn_layers=f"{name}*6") for name in ("thin", "wide"))
    mixed = recipe(ffn_layers="thin*3 wide*3")
    sizes = [step_size(one, 32, 1, GPUS["h200"]).activations for one in (thin, mixed, wide)]
    assert sizes[1] == (sizes[0] + sizes[2]) / 2
    needed = [bytes_needed(one.model, 32, 1, 1, 2) for one in (thin, mixed, wide)]
    assert needed[0] < needed[1] == needed[2]


def test_tables_tell_them_apart(recipe, capsys, tmp_path):
    loaded = recipe()
    layers = json.loads(as_json(loaded))["layers"]
    assert [(layer["ffn"], layer["feed_forward"]) for layer in layers[:2]] == [
        ("thin", "gelu 12"),
        ("wide", "swiglu 40"),
    ]
    lines = as_text(loaded, 140).splitlines()
    assert next(line for line in lines if line.startswith("    1")).split()[-4:] == ["wide", "swiglu", "40", "1,920"]
    assert cli.run(["compare", *[str(tmp_path / "two.yaml")] * 2, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["columns"][0]
    assert found["layers"][0]["feed_forward"] == "gelu 12"
    assert found["active_parameters"] == found["parameters"]["total"]


def test_it_trains_generates_and_is_exported(recipe):
    loaded = recipe()
    model = build_model(loaded).double()
    tokens_BT = torch.arange(12)[None]
    model.loss(tokens_BT, tokens_BT).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    cache = model.new_cache(1, 12)
    parts = [model(part, cache=cache) for part in tokens_BT.split([7, 1, 4], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens_BT))
    exported = ZooForCausalLM(ZooConfig(json.loads(json.dumps(loaded.model.model_dump(mode="json"))))).double()
    exported.decoder.load_state_dict(model.state_dict())
    torch.testing.assert_close(exported(tokens_BT).logits, model(tokens_BT))


def test_a_wrong_count_names_the_layer(recipe, monkeypatch):
    loaded = recipe()
    monkeypatch.setattr(type(loaded.model.ffns["wide"]), "parameters", lambda self, d_model: 7)
    with pytest.raises(Exception, match=r"model\.ffns\.wide: layer 1 \(SwiGLUModule\) has 1,920 parameters"):
        build_model(loaded)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ffns": None, "ffn_layers": None}, "model.ffn: is required, or ffns with ffn_layers."),
        ({"ffn": {"d_ff": 8}}, "model.ffns: cannot stand beside ffn, which is for every layer; remove one"),
        ({"ffn": {"d_ff": 8}, "ffns": None}, "model.ffn_layers: cannot stand beside ffn"),
        ({"ffn_layers": None}, "model.ffn_layers: is required: ffns and ffn_layers come together"),
        ({"ffns": None}, "model.ffns: is required: ffns and ffn_layers come together"),
        ({"ffn_layers": "thin*4"}, "model.ffn_layers: the schedule has 4 layers, but the model has 6"),
        ({"ffn_layers": "thin wide*3 ..."}, "does not come out even in 6 layers"),
        (
            {"ffn_layers": "thin wid ..."},
            "unknown feed-forward 'wid'; known: thin, wide. Did you mean 'wide'?",
        ),
        ({"ffn_layers": "thin.left*6"}, "model.ffn_layers: feed-forward 'thin' (gelu) has no parts; found 'thin.left'"),
        (
            {"ffn_layers": ["thin*5", {"use": "wide", "with": {"dff": 8}}]},
            "model.ffn_layers[1].with.dff: unknown key 'dff'; known: kind, d_ff",
        ),
        (
            {"ffn_layers": ["thin*5", {"use": "wide", "with": {"d_ff": 0}}]},
            "model.ffn_layers[1].with.d_ff: must be at least 1; found 0",
        ),
        (
            {"ffn_layers": ["thin*5", {"use": "wide", "with": {"kind": "gelu"}}]},
            "kind cannot change for one occurrence; define another feed-forward",
        ),
        ({"ffns": {"thin": {"kind": "gelu"}}, "ffn_layers": "thin ..."}, "model.ffns.thin.d_ff: is required"),
        ({"ffns": {"thin": {"kind": "gelu", "d_ff": 8, "x": 1}}, "ffn_layers": "thin ..."}, "unknown key 'x'"),
        ({"ffns": {}}, "model.ffns: must have at least 1 entries; found 0"),
        ({"d_model": 0, "ffn_layers": "thin wid ..."}, "unknown feed-forward 'wid'"),
    ],
)
def test_mistakes_are_named(recipe, changes, why):
    with pytest.raises(RecipeError) as caught:
        recipe(**changes)
    assert why in str(caught.value)


def test_mistakes_of_an_invalid_file_are_named_once(recipe):
    with pytest.raises(RecipeError) as caught:
        recipe(ffn_layers="thin wid ...")
    assert len(caught.value.problems) == 1
    assert ModelConfig.model_validate(MODEL).expanded()[4].ffn_name == "wide"
