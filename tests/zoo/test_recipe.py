# ruff: noqa: E501 - expected messages stand on one line
"""The recipe: every mistake at once with its place, the expanded layers, and the resolved recipe that loads the same."""

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo.blocks import registry
from zoo.errors import RecipeError
from zoo.recipe import ModelConfig, Recipe, load_recipe, schema

GOOD = """\
name: good
model:
  d_model: 64
  vocab_size: 300
  max_seq_len: 128
  ffn: {kind: swiglu, d_ff: 96}
  blocks:
    local: {kind: window, n_heads: 4, window: 32}
    full: {kind: full, n_heads: 4, n_kv_heads: 2}
    ansa: {kind: ansa, n_heads: 4, n_kv_heads: 2, n_selected: 4}
  layers: full (local*3 ansa.global)*2 ansa
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load text as the recipe `mine.yaml`, with `--set` overrides."""
    monkeypatch.chdir(tmp_path)

    def load(text: str = GOOD, *overrides: str) -> Recipe:
        Path("mine.yaml").write_text(text)
        return load_recipe("mine.yaml", overrides)

    return load


@pytest.fixture
def problems(load):
    """The lines that loading prints."""

    def problems(text: str = GOOD, *overrides: str) -> list[str]:
        with pytest.raises(RecipeError) as refused:
            load(text, *overrides)
        assert refused.value.exit_code == 2
        return str(refused.value).splitlines()

    return problems


def test_layers(load):
    layers = load().model.expanded()
    assert [layer.block for layer in layers] == ["full", *["local"] * 3, "ansa.global"] + [
        *["local"] * 3,
        "ansa.global",
        "ansa.local",
    ]
    assert [layer.index for layer in layers] == list(range(10))
    assert (layers[1].kind, layers[1].config.window, layers[1].part) == ("window", 32, None)
    assert (layers[4].name, layers[4].part, layers[4].kind) == ("ansa", "global", "ansa")


def test_a_bare_name_alternates_by_its_own_occurrences(load):
    layers = "ansa local ansa ansa.local full ansa"
    parts = lambda recipe: [layer.part for layer in recipe.model.expanded() if layer.name == "ansa"]  # noqa: E731
    assert parts(load(GOOD, f"model.layers={layers}")) == ["local", "global", "local", "local"]
    turned = load(GOOD, f"model.layers={layers}", "model.blocks.ansa.first=global")
    assert parts(turned) == ["global", "local", "local", "global"]
    assert parts(load(GOOD, "model.layers=ansa ...", "model.n_layers=4")) == ["local", "global"] * 2


def test_with_overrides_one_occurrence(load):
    recipe = load(GOOD, "model.layers=[local, {repeat: 2, of: [{use: local, with: {window: 64}}]}, ansa]")
    layers = recipe.model.expanded()
    assert [layer.config.window for layer in layers[:3]] == [32, 64, 64]
    assert layers[1].config.n_heads == 4
    assert layers[1].config is layers[2].config


def test_the_messages_of_the_style_guide(problems):
    text = GOOD.replace("window: 32", "window: 0").replace("full (", "gloabl (").replace("full:", "global:")
    assert problems(text) == [
        "mine.yaml:8:47: model.blocks.local.window: must be at least 1; found 0.",
        "mine.yaml:11:11: model.layers: unknown block 'gloabl'; known: ansa, global, local. Did you mean 'global'?",
    ]


MISTAKES = [
    ("name: good", "name: ../x", "mine.yaml:1:7: name: must be text of the form"),
    ("name: good", "nmae: good", "mine.yaml:1:1: nmae: unknown key 'nmae'; known: name, summary,"),
    ("name: good", "nmae: good", "mine.yaml:1:1: name: is required."),
    ("name: good", "name: 5", "mine.yaml:1:7: name: must be text; found 5."),
    ("d_model: 64", 'd_model: "64"', "mine.yaml:3:12: model.d_model: must be a whole number; found '64'."),
    ("d_model: 64", "d_model: true", "mine.yaml:3:12: model.d_model: must be a whole number; found true."),
    ("d_model: 64", "d_model: 64.5", "mine.yaml:3:12: model.d_model: must be a whole number; found 64.5."),
    ("d_model: 64", "d_model: null", "mine.yaml:3:12: model.d_model: must be a whole number; found nothing."),
    ("d_model: 64", "d_model: 65", "mine.yaml:8:36: model.blocks.local.n_heads: must divide d_model (65)"),
    ("vocab_size: 300\n", "\n", "mine.yaml:2:1: model.vocab_size: is required."),
    ("vocab_size: 300", "vocab_size: 200", "mine.yaml:1:1: data: the byte tokenizer uses 257 tokens; model.vocab_size"),
    ("swiglu", "swigl", "mine.yaml:6:15: model.ffn.kind: must be 'swiglu', 'geglu', 'gelu', 'relu2' or 'moe'; found 'swigl'. Did you mean 'swiglu'?"),
    ("{kind: swiglu, d_ff: 96}", "96", "mine.yaml:6:8: model.ffn: must be a mapping; found 96."),
    ("kind: window", "kind: windw", "mine.yaml:8:19: model.blocks.local.kind: unknown block kind 'windw'; known: attention,"),
    ("kind: window, ", "", "mine.yaml:8:5: model.blocks.local.kind: is required; known: attention, full,"),
    ("kind: window", "kind: [a]", "mine.yaml:8:19: model.blocks.local.kind: must be the name of a block kind; found a list"),
    ("window: 32", "windw: 32", "mine.yaml:8:39: model.blocks.local.windw: unknown key 'windw'; known: kind, n_heads,"),
    ("n_kv_heads: 2}", "n_kv_heads: 3}", "mine.yaml:9:48: model.blocks.full.n_kv_heads: must divide n_heads (4); found 3."),
    ("    local: {", "    3local: {", "mine.yaml:8:5: model.blocks.3local: must be text of the form"),
    ("full (", "full ((", "mine.yaml:11:16: model.layers: '(' is never closed."),
    ("local*3", "local*0", "mine.yaml:11:22: model.layers: a repeat count must be at least 1; found 0."),
    ("ansa.global", "ansa.globl", "mine.yaml:11:25: model.layers: unknown part of 'ansa' 'globl'; known: local, global."),
    ("full (", "full.x (", "mine.yaml:11:11: model.layers: block 'full' (full) has no parts; found 'full.x'."),
    ("layers: full", "n_layers: 11\n  layers: full", "mine.yaml:12:11: model.layers: the schedule has 10 layers, but n_layers"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), MISTAKES, ids=[f"{old} -> {new}" for old, new, _ in MISTAKES])
def test_a_mistake_is_one_line_with_its_place(problems, old, new, line):
    assert old in GOOD
    found = problems(GOOD.replace(old, new, 1))
    assert any(text.startswith(line) for text in found), found


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.source=3", "data.source: must be a mapping; found 3."),
        ("data.source={kind: 16}", "data.source.kind: must be python-stdlib, text, jsonl, parquet, huggingface, mds, "
                                   "synthetic; found 16."),
        ("data.tokenizer={kind: {a: b}}", "data.tokenizer.kind: must be byte, bpe, huggingface; found a mapping."),
        ("train.checkpoint.keep={a: b}", "train.checkpoint.keep: must be a whole number from 1, or all; found a mapping."),
        ("train.duration=" + "1" * 99, "train.duration: must be a number and a unit"),
    ],
)  # fmt: skip
def test_a_value_of_another_shape_is_shown_shortly(problems, setting, message):
    (found,) = problems(GOOD, setting)
    assert found.startswith(f"--set {setting}: {message}")
    assert len(found) < len(setting) + 250


LIST_MISTAKES = {
    "[local, gloabl]": "mine.yaml:11:19: model.layers[1]: unknown block 'gloabl'; known: ansa, full, local.",
    "[local, 'full x']": "mine.yaml:11:19: model.layers[1]: unknown block 'x'; known: ansa, full, local.",
    "[{use: local, with: {windw: 1}}]": "mine.yaml:11:32: model.layers[0].with.windw: unknown key 'windw'; known: kind,",
    "[{use: local, with: {window: 0}}]": "mine.yaml:11:40: model.layers[0].with.window: must be at least 1; found 0.",
    "[{use: local, with: {kind: full}}]": "mine.yaml:11:38: model.layers[0].with.kind: kind cannot change for one",
    "[{use: ansa, with: {first: global}}]": "mine.yaml:11:38: model.layers[0].with.first: the order of a block's parts",
    "[{use: local, with: {n_heads: 5}}]": "mine.yaml:11:41: model.layers[0].with.n_heads: must divide d_model (64)",
    "[{repeat: 0, of: [local]}]": "mine.yaml:11:21: model.layers[0].repeat: must be at least 1; found 0.",
    "[{repeat: 2, of: 'a b'}]": "mine.yaml:11:24: model.layers[0].of: unknown block 'a'; known: ansa, full, local.",
    "[{use: full, with: {n_heads: 3, head_dim: 8}}]": "mine.yaml:11:24: model.layers[0].with.n_kv_heads: must divide n_heads (3)",
    "[full, {repeat: 2}]": "mine.yaml:11:18: model.layers[1].of: must be a schedule string or a list; found nothing.",
    "{repeat: 2}": "mine.yaml:11:11: model.layers: must be a schedule string or a list; found a mapping.",
    "5": "mine.yaml:11:11: model.layers: must be a schedule string or a list; found 5.",
}


@pytest.mark.parametrize(("layers", "line"), LIST_MISTAKES.items())
def test_mistakes_in_a_list_schedule(problems, layers, line):
    found = problems(GOOD[: GOOD.index("layers:")] + f"layers: {layers}\n")
    assert any(text.startswith(line) for text in found), found


def test_all_mistakes_of_a_file_come_at_once(problems):
    text = GOOD.replace("window: 32", "window: 0").replace("full (", "ful (").replace("d_model: 64", "d_model: no")
    text += "data: {seq_len: 999, source: {kind: text, paths: [a], sep: x}}\n"
    text += "train: {duration: soon, optimizer: {lr: fast}}\nevl: 3\n"
    assert [line.split(": ")[1] for line in problems(text, "train.foo=1", "seed=-1")] == [
        "model.d_model",
        "model.blocks.local.window",
        "model.layers",
        "data.source.sep",
        "train.duration",
        "train.optimizer.lr",
        "evl",
        "seed",
        "train.foo",
    ]


def test_checks_between_sections_are_not_hidden_by_other_mistakes(problems):
    found = problems(GOOD + "data: {seq_len: 999}\ntrain: {batch_tokens: 1000}\neval: {batches: none}\n")
    assert [line.split(": ")[:2] for line in found] == [
        ["mine.yaml:12:17", "data.seq_len"],
        ["mine.yaml:13:23", "train.batch_tokens"],
        ["mine.yaml:14:17", "eval.batches"],
    ]


def test_overrides_are_checked_and_named(problems):
    found = problems(GOOD, "model.blocks.local.window=0", "model.blocks.local.widow=4")[0]
    place = "--set model.blocks.local.widow=4: model.blocks.local.widow: unknown key 'widow'; known: "
    known = ", ".join(registry.config_class("window").model_fields)
    assert found == f"{place}{known}. Did you mean 'window'?"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.blocks={}", "model.blocks: must have at least 1 entries; found 0."),
        ("train.optimizer.betas=[0.9]", "train.optimizer.betas: is too short: it has no entry 1, counted from 0."),
        ("train.optimizer.lr=.nan", "train.optimizer.lr: must be a finite number; found nan."),
        (
            "train.loggers=[wnb]",
            "train.loggers[0]: must be 'jsonl', 'tensorboard', 'wandb' or 'mlflow'; found 'wnb'. Did",
        ),
        ("data.source={kind: txt}", "data.source.kind: unknown kind 'txt'; known: python-stdlib, text,"),
        ("data.source={}", "data.source.kind: is required."),
        ("extends=a.yaml", "extends can only be written in a file."),
        ("model=3", "model: must be a mapping; found 3."),
    ],
)
def test_odd_values_are_refused_in_words(problems, override, message):
    assert any(line.startswith(f"--set {override}: {message}") for line in problems(GOOD, override))


def test_the_place_names_the_file_a_value_came_from(load, problems):
    Path("base.yaml").write_text(GOOD.replace("window: 32", "window: 0"))
    assert problems("extends: base.yaml\nname: top\n") == [
        "base.yaml:8:47: model.blocks.local.window: must be at least 1; found 0."
    ]
    Path("base.yaml").write_text(GOOD)
    assert (
        load("extends: base.yaml\nname: top\nmodel: {blocks: {local: {window: 7}}}").model.blocks["local"].window == 7
    )


def test_unused_blocks_are_noted(load):
    assert load().notes == []
    assert load(GOOD, "model.layers=full*2").notes == ["model.blocks: defined but not in the schedule: local, ansa"]


def test_wrong_mixtures_of_projection_and_patterns_are_refused_when_read(problems):
    block = "model.blocks.full={kind: attention, patterns: [{kind: selection}]}"
    line = f"--set {block}: model.blocks.full.patterns[0]: selection needs the pattern compression in the same block"
    assert problems(GOOD, block)[0].startswith(line)


def test_a_kind_from_elsewhere(load, problems, monkeypatch):
    monkeypatch.setitem(registry.MIXERS.own, "elsewhere", "zoo.blocks.kinds.full:FullConfig")
    assert "elsewhere" in problems(GOOD.replace("kind: window", "kind: elswhere"))[0]
    assert "Did you mean 'elsewhere'?" in problems(GOOD.replace("kind: window", "kind: elswhere"))[0]


def test_the_resolved_recipe_loads_the_same(load):
    layers = "model.layers=[full, {repeat: 2, of: [{use: local, with: {window: 64}}, ansa]}, '...']"
    extra = "summary: 'yes: \"1e-3\" #'\ntrain: {clip_norm: null, optimizer: {lr: 1e-5}}\n"
    block = (
        "model.blocks.grid={kind: attention, projection: {kind: gla}, patterns: [{kind: compression}, {kind: window}]}"
    )
    for overrides in ([], [layers, "model.n_layers=10"], ["summary='1e-3'"], ["summary='true'"], [block]):
        recipe = load(GOOD + extra, *overrides)
        dumped = recipe.dump()
        again = load(dumped)
        assert again == recipe
        assert again.dump() == dumped
        assert again.model.expanded() == recipe.model.expanded()
        assert "extends" not in dumped
    assert load(GOOD + extra).train.clip_norm is None


def test_models_can_be_made_from_python_too():
    settings = {"d_model": 64, "vocab_size": 300, "max_seq_len": 128, "ffn": {"d_ff": 96}}
    model = ModelConfig.model_validate({**settings, "blocks": {"a": {"kind": "full", "n_heads": 4}}, "layers": "a*2"})
    assert ModelConfig.model_validate(model.model_dump(mode="json")) == model
    with pytest.raises(ValueError, match="unknown block 'b'"):
        ModelConfig.model_validate({**settings, "blocks": {"a": {"kind": "full"}}, "layers": "b"})


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**70)
    | st.floats()
    | st.sampled_from(["full", "local", "ansa", "window", "x", "a*", "10ba", "1e-3", "..."])
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "use", "with", "repeat", "of", "x", "d_ff"]), inner, max_size=3)
    ),
    max_leaves=5,
)
KEYS = ["name", "seed", "model", "data", "train", "eval", "model.d_model", "model.n_layers", "model.vocab_size"]
KEYS += ["model.max_seq_len", "model.ffn", "model.blocks", "model.layers", "model.blocks.local", "model.blocks.ansa"]
KEYS += ["model.blocks.local.window", "model.blocks.local.kind", "data.source", "data.sources", "train.optimizer"]
KEYS += [
    "train.duration",
    "train.batch_tokens",
    "train.loggers",
    "eval.batches",
    "extends",
    "model.blocks.local.rope_scaling",
]


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS), values), min_size=1, max_size=3))
def test_any_value_at_any_key_gives_a_recipe_or_a_clean_error(load, changes):
    pieces = [yaml.safe_dump(value, default_flow_style=True, width=10**9).split("\n...")[0] for _, value in changes]
    with suppress(RecipeError):
        load(GOOD, *(f"{key}={piece.strip()}" for (key, _), piece in zip(changes, pieces, strict=True)))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.lr", "Did you mean 'train.optimizer.lr'?"),
        ("train.warmup", "Did you mean 'train.schedule.warmup'?"),
        ("lr", "Did you mean 'train.optimizer.lr'?"),
        ("model.lr", "Did you mean 'train.optimizer.lr'?"),
        ("data.batch_size", "Did you mean 'train.batch_size'?"),
        ("model.n_kv_heads", "Did you mean 'model.blocks.<name>.n_kv_heads' or "),
        ("train.optimizer.warmup", "Did you mean 'train.schedule.warmup'?"),
        ("train.batches", "Did you mean 'batch_tokens' or 'eval.batches'?"),
        ("data.tokeniser", "Did you mean 'tokenizer'?"),
    ],
)
def test_a_key_at_the_wrong_place_gets_the_right_one(load, key, hint):
    with pytest.raises(RecipeError, match=rf"--set {key}=1: {key}: unknown key ") as error:
        load(GOOD, f"{key}=1")
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (
            "data.source={kind: jsonl, paths: [a], path: b}",
            "'paths' or 'data.tokenizer.path' or 'data.validation_source",
        ),
        ("model.blocks.near={kind: full, n_heads: 4, kv_rank: 8}", "'model.blocks.<name>.projection.kv_rank'"),
    ],
)
def test_a_key_of_another_kind_is_not_sent_to_where_it_stands(load, change, hint):
    with pytest.raises(RecipeError, match=f"unknown key .* Did you mean {hint}"):
        load(GOOD, change)


def test_of_the_places_of_a_key_those_below_come_first():
    found = schema.paths_of("norm_eps", ("model", "blocks", "near"), schema.schema_definitions())
    assert found == ["model.blocks.<name>.projection.norm_eps", "model.norm_eps"]
