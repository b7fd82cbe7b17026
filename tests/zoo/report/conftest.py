"""Run folders made of a recipe and a few lines of metrics, so that no test of a report has to train."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.recipe import load_recipe
from zoo.recipe.seal import sealed

TINY = Path(__file__).parents[3] / "recipes" / "tiny"


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], str]:
    """`tiny("nsa")`: the path of a recipe of recipes/tiny."""
    return lambda name: str(TINY / f"{name}.yaml")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`run("full", losses=[3.0, 2.5])`: a run folder with a training loss after each batch of 4,096 tokens and a
    validation, 0.1 higher, after every second one. `losses` may be empty."""

    def make(name: str, losses: list[float], folder: str | None = None, overrides: tuple[str, ...] = ()) -> str:
        path = tmp_path_factory.mktemp("runs") / (folder or name)
        path.mkdir()
        (path / "recipe.yaml").write_text(sealed(load_recipe(TINY / f"{name}.yaml", overrides).dump()))
        lines = []
        for batch, loss in enumerate(losses, start=1):
            place = {"batch": batch, "tokens": 4096 * batch, "time_s": 0.5 * batch}
            lines.append({**place, "loss": loss, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 8192.0})
            if batch % 2 == 0:
                lines.append(
                    {**place, "validation_loss": loss + 0.1, "validation_bits_per_byte": (loss + 0.1) / 0.6931}
                )
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    return make
