"""Attention maps against masks written out by hand, and `zoo show --pattern`."""

import xml.etree.ElementTree
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo import build_model, cli
from zoo.blocks import build, config_class
from zoo.blocks.base import Context
from zoo.errors import RecipeError, ZooError
from zoo.recipe import load_recipe
from zoo.report import maps
from zoo.report.maps import random_visibility, thumbnail, visibility
from zoo.report.patterns import show_pattern
from zoo.runs.folder import RunFolder
from zoo.training.final_weights import export

T = 70


def brute(see) -> torch.Tensor:
    return torch.tensor([[float(see(t, s)) for s in range(T)] for t in range(T)])


@pytest.mark.parametrize(
    ("kind", "fields", "part", "pattern", "see"),
    [
        ("full", {}, None, "full", lambda t, s: s <= t),
        ("full", {"n_kv_heads": 1}, None, "full", lambda t, s: s <= t),
        ("window", {"window": 9}, None, "window", lambda t, s: t - 9 < s <= t),
        ("mla", {"window": 1}, None, "window", lambda t, s: s == t),
        ("gla", {}, None, "full", lambda t, s: s <= t),
        ("nsa", {"window": 5}, None, "window", lambda t, s: t - 5 < s <= t),
        ("nsa", {}, None, "compression", lambda t, s: any(j <= s < j + 32 and j + 31 <= t for j in range(0, T, 16))),
        ("nsa", {}, None, "selection", lambda t, s: s <= t),  # fewer blocks than places: all of them
        ("ansa", {"window": 6}, "local", "window", lambda t, s: t - 6 < s <= t),
        ("ansa", {"n_selected": 3}, "global", "compression", lambda t, s: (s // 16 + 1) * 16 - 1 <= t),
    ],
)
def test_the_map_is_the_mask(kind, fields, part, pattern, see):
    found = random_visibility(config_class(kind)(n_heads=4, **fields), part, 32, T)
    assert torch.equal(found[pattern], brute(see))


@pytest.mark.parametrize("tile", [3, 8])
@pytest.mark.parametrize(("kind", "part"), [("full", None), ("nsa", None), ("ansa", "local"), ("ansa", "global")])
def test_keys_that_count_as_one_are_seen_if_any_is(kind, part, tile):
    fields = {"window": 9, "n_selected": 3} if kind != "full" else {}
    config = config_class(kind)(n_heads=4, **fields)
    each, tiled = (random_visibility(config, part, 32, T, tile=size) for size in (1, tile))
    assert each.keys() == tiled.keys()
    for pattern, seen_TT in each.items():
        assert tiled[pattern].shape == (T, T)
        if pattern == "compression":
            assert torch.equal(tiled[pattern], seen_TT), "pooled keys are told apart"
            continue
        for first in range(0, T, tile):
            keys = slice(first, first + tile)
            assert torch.equal(tiled[pattern][:, keys] > 0, (seen_TT[:, keys] > 0).any(1, keepdim=True).expand_as(
                tiled[pattern][:, keys])), (pattern, first)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fields", "seq_len", "title"),
    [
        ("nsa", {}, 2048, "2,048 tokens"),  # selects 1,024: of no more, the map would be that of full attention
        ("window", {"window": 4096}, 2048, "2,048 tokens, all within its reach"),
        ("window", {"window": 48}, 96, "96 tokens"),
        ("full", {}, 64, "64 tokens"),
    ],
)
def test_a_thumbnail_is_long_enough_for_its_pattern_to_show(kind, fields, seq_len, title, monkeypatch):
    lengths, titles = [], []
    monkeypatch.setattr(maps, "random_visibility", lambda *arguments, tile: lengths.append((arguments[3], tile)))
    monkeypatch.setattr(maps, "draw", lambda found, title, *rest: titles.append(title))
    monkeypatch.setattr(maps, "as_svg", lambda *rest: "")
    thumbnail(config_class(kind)(n_heads=4, **fields), None, 32)
    assert (lengths, titles) == ([(seq_len, max(1, seq_len // 256))], [title])


def test_selection_shows_the_forced_blocks_and_its_choice():
    found = random_visibility(config_class("ansa")(n_heads=4, n_kv_heads=2, n_selected=4), "global", 64, 256)[
        "selection"
    ]
    for t in range(256):
        blocks = found[t].unflatten(0, (-1, 16)).amax(-1)
        own = t // 16
        assert blocks[0] == blocks[own] == blocks[max(0, own - 1)] == 1, "forced in every head"
        assert not blocks[own + 1 :].any()
        assert found[t].sum() == pytest.approx(min(3, own) * 16 + t % 16 + 1), "mean over heads of the tokens seen"
    assert all(torch.equal(found[t, : t // 16 * 16], found[t - t % 4, : t // 16 * 16]) for t in range(256))
    assert set(found.unique().tolist()) == {0.0, 0.5, 1.0}


def test_the_block_itself_is_left_as_it_was():
    block = build(config_class("nsa")(n_heads=4), 32, None)
    x_BTC, context = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(0)), Context.for_tokens(1, 40)
    before = block(x_BTC, context)
    visibility(block, x_BTC, context)
    assert torch.equal(block(x_BTC, context), before)


def test_a_block_without_patterns_is_refused():
    with pytest.raises(ZooError, match="no attention map: Linear is not made of patterns"):
        visibility(nn.Linear(2, 2), torch.zeros(1, 3, 2), None)


@pytest.mark.parametrize("kind", ["full", "window", "mla", "gla", "nsa", "ansa"])
def test_thumbnails(kind):
    config = config_class(kind)(n_heads=4)
    for part in config.parts or (None,):
        svg = thumbnail(config, part, 64, 80)
        assert xml.etree.ElementTree.fromstring(svg).tag.endswith("svg")


def test_a_thumbnail_that_fails_says_why(monkeypatch):
    config = config_class("full")(n_heads=4)
    monkeypatch.setattr(type(config), "build", lambda *arguments: nn.Linear(2, 2))
    monkeypatch.setattr("zoo.report.maps._one_head", lambda config, *rest: config)
    assert "no attention map: Linear" in thumbnail(config, None, 64, 16)


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_the_command_draws_a_layer(tiny, tmp_path, capsys, ending):
    path = tmp_path / f"map.{ending}"
    arguments = ["show", tiny("ansa"), "--pattern", "layer=3", "--seq-len", "64", "-o", str(path)]
    assert cli.run(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}: layer 3, ansa.global: GLA, compression 16/16, selection 6 x 16 by 4 queries;")
    assert "selection 50.8%" in out, "65 of 128: a causal triangle"
    start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[ending]
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "layer=4"}, "--pattern: must be layer=0 to layer=3; found 'layer=4'"),
        ({"pattern": "3"}, "--pattern: must be layer=0 to layer=3; found '3'"),
        ({"seq_len": 0}, "--seq-len: must be from 1 to 2048; found 0"),
        ({"seq_len": 2049}, "--seq-len: must be from 1 to 2048; found 2049"),
        ({"text": Path("x")}, "--text: needs a run folder"),
        ({"output": Path("x.jpg")}, r"x\.jpg: must end in \.svg, \.png, \.pdf; found \.jpg"),
    ],
)
def test_mistakes_are_refused(tiny, tmp_path, changes, message):
    request = {"pattern": "layer=0", "seq_len": 8, "text": None, "output": tmp_path / "x.svg", **changes}
    with pytest.raises(ZooError, match=message):
        show_pattern(Path(tiny("full")), [], **request)


@pytest.mark.parametrize("option", [("-o", "x.svg"), ("--seq-len", "64"), ("--text", "x.txt")])
def test_options_of_a_map_need_a_layer(tiny, capsys, option):
    assert cli.run(["show", tiny("nsa"), *option]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "is for --pattern layer=N" in " ".join(err.split())


@pytest.mark.slow
def test_a_trained_selection_reads_a_text(tiny, tmp_path):
    """Of a run: model and tokenizer of the folder, without the data of the training; other text, other blocks."""
    recipe = load_recipe(tiny("nsa"), ["model.layers=nsa*2"])
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.recipe.write_text(recipe.dump())
    export(folder, recipe, build_model(recipe).state_dict())
    gone = f"data.source={{kind: text, paths: [{tmp_path / 'text'}]}}"
    folder.recipe.write_text(load_recipe(folder.recipe, [gone]).dump())
    pictures = []
    for number, words in enumerate(("alpha beta gamma ", "zz top ")):
        text = tmp_path / f"{number}.txt"
        text.write_text(words * 60)
        picture = tmp_path / f"{number}.png"
        said = show_pattern(folder.path, [], "layer=1", 300, text, picture)
        assert "layer 1, nsa: GQA, compression 16/8, selection 6 x 16, window 64" in said
        pictures.append(picture.read_bytes())
    assert pictures[0] != pictures[1]
    with pytest.raises(RecipeError, match="a run is shown as it was trained"):
        show_pattern(folder.path, ["seed=1"], "layer=1", 300, None, None)
