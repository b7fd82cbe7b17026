"""The files that docs/own_part.md shows are the files of the repository, and its plugins work as the page says."""

import re
import sys
from pathlib import Path

import pytest
import torch

from zoo.model import build_model
from zoo.parts import FAMILIES
from zoo.recipe import load_recipe
from zoo.training.optimizer import make_optimizer

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "own_part.md").read_text(encoding="utf-8")


SHOWN = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
PLUGINS = ("my_heads.py", "my_optimizer.py")
RECIPE = """\
extends: zoo:tiny/_base
name: mine
plugins: [my_heads, my_optimizer]
model:
  blocks: {scaled: {kind: head_scaled, projection: {kind: gqa, n_heads: 4}}}
  layers: scaled*2
train: {optimizer: {kind: adafactor, lr: 1e-2, weight_decay: 0.1, lr_multipliers: {'*head_scale': 0.5}}}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe with the plugins of the page, which are forgotten afterwards."""
    for family in FAMILIES.values():
        monkeypatch.setattr(family, "own", dict(family.own))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in PLUGINS:
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
        (tmp_path / name).write_text(SHOWN[name], encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    return load_recipe(tmp_path / "mine.yaml")


def test_the_subclass_of_attention_counts_trains_and_reads_a_cache(recipe):
    model = build_model(recipe).double().eval()  # refuses another number of parameters than is counted
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.head_scale.copy_(torch.linspace(0.5, 2, 4))
        tokens = torch.arange(40)[None]
        logits, cache = model(tokens), model.new_cache(batch=1, max_len=40)
        pieces = [model(piece, cache=cache) for piece in tokens.split([25, 1, 14], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), logits)
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    assert all(layer.attention.head_scale.grad.abs().min() > 0 for layer in model.layers)


def test_the_optimiser_has_the_groups_that_the_page_speaks_of(recipe):
    groups = make_optimizer(build_model(recipe), recipe.train.optimizer).param_groups
    assert {(group["weight_decay"], group["lr"]) for group in groups} == {(0.1, 1e-2), (0.0, 1e-2), (0.0, 5e-3)}


def test_the_page_shows_the_files_as_they_are():
    assert SHOWN.keys() > {*PLUGINS}
    assert len(SHOWN) == 3 + len(PLUGINS)
    for path, text in SHOWN.items():
        if path in PLUGINS:
            continue
        assert text == (ROOT / path).read_text(encoding="utf-8"), path


def test_the_page_lists_every_family_with_its_base_class():
    rows = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", PAGE, re.MULTILINE))
    assert rows == {name: family.base.replace(":", ".") for name, family in FAMILIES.items()}
