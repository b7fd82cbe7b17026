"""The tiny recipes stay what they are: parameters and the initial weights of their seed, bit for bit."""

import hashlib
from pathlib import Path

import pytest

from zoo.model import build_model
from zoo.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes/tiny"
PINNED = {
    "ansa": (786752, "a8c90c121c8838bc"),
    "dilated": (776320, "977b561f861d99df"),
    "full": (772224, "03f0afc5e30f94ed"),
    "gated_deltanet": (780024, "c78f8b3d0317e6bb"),
    "lightning": (772608, "4a9ee89b7b25da7f"),
    "gla": (784704, "3ad1f01660f478b8"),
    "mla": (772416, "cfe57f9fdc08b119"),
    "moba": (772224, "03f0afc5e30f94ed"),
    "nsa": (778368, "e207dbdc55d49f4c"),
    "window": (772224, "03f0afc5e30f94ed"),
}


@pytest.mark.parametrize("name", PINNED)
def test_parameters_and_initial_weights_stay_the_same(name):
    model = build_model(load_recipe(RECIPES / f"{name}.yaml"))
    weights = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        weights.update(key.encode() + str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    assert (sum(p.numel() for p in model.parameters()), weights.hexdigest()[:16]) == PINNED[name]
