"""Weights that a thread draws: those of `build_model`, with its errors, and no longer than they are wanted."""

import threading
import time
from pathlib import Path

import pytest
import torch

import zoo
from zoo.model import decoder
from zoo.training.drawing import Drawing

RECIPES = Path(__file__).parents[3] / "recipes" / "tiny"


MOE = "model.ffn={kind: moe, n_experts: 4, d_ff: 16}"  # whose module draws its own weights


@pytest.mark.parametrize(
    ("name", "settings"), [("ansa", []), ("gated_deltanet", []), ("full", [MOE])], ids=["ansa", "deltanet", "moe"]
)
def test_the_weights_are_those_of_build_model(name, settings):
    recipe = zoo.load_recipe(RECIPES / f"{name}.yaml", overrides=["seed=5", *settings])
    with Drawing(recipe) as drawing:
        assert drawing.thread is not None
        torch.rand(1000)  # another use of the CPU's generator
        found = drawing.take().state_dict()
    expected = zoo.build_model(recipe).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_an_error_is_raised_where_the_model_is_taken(monkeypatch):
    def fails(*arguments, **options):
        raise MemoryError("no room")

    monkeypatch.setattr(decoder, "initialise", fails)
    with Drawing(zoo.load_recipe(RECIPES / "full.yaml")) as drawing, pytest.raises(MemoryError, match="no room"):
        drawing.take()


def test_drawing_ends_with_the_context(monkeypatch):
    """A recipe whose data are refused must not wait for billions of weights."""

    drawn_by = []

    def draws(model, seed, going):
        drawn_by.append(threading.current_thread().name)
        deadline = time.monotonic() + 20
        while going():
            assert time.monotonic() < deadline, "the drawing is not told to end"
            time.sleep(0.01)

    monkeypatch.setattr(decoder, "initialise", draws)
    with pytest.raises(ValueError, match="no data"), Drawing(zoo.load_recipe(RECIPES / "full.yaml")):
        raise ValueError("no data")
    assert drawn_by == ["zoo-drawing"]
    assert "zoo-drawing" not in {thread.name for thread in threading.enumerate()}


def test_initialise_stops_when_told():
    recipe, asked = zoo.load_recipe(RECIPES / "full.yaml"), []
    model = decoder.undrawn(recipe.model)
    for parameter in model.parameters():
        parameter.data.zero_()

    def going() -> bool:
        asked.append(None)
        return len(asked) < 5

    decoder.initialise(model, 0, going)
    drawn = [bool(parameter.any()) for parameter in model.parameters()]
    assert len(asked) == 5
    assert drawn[0]
    assert not drawn[-1]


def test_modules_of_other_packages_draw_in_the_main_thread(monkeypatch):
    recipe, where = zoo.load_recipe(RECIPES / "full.yaml"), []

    class Theirs(torch.nn.Module):
        def initialise(self, generator, std, residual_std):
            where.append(threading.current_thread())

    def with_theirs(config, undrawn=decoder.undrawn):
        model = undrawn(config)
        model.theirs = Theirs()
        return model

    monkeypatch.setattr(decoder, "undrawn", with_theirs)
    with Drawing(recipe) as drawing:
        time.sleep(0.05)
        assert where == []
        model = drawing.take()
    assert where == [threading.main_thread()]
    assert torch.equal(model.embedding.weight, zoo.build_model(recipe).embedding.weight)
