"""Run folders of untrained tiny models, and a tokenizer of words with pieces of characters."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zoo.data.config import BpeTokenizer
from zoo.data.tokenizers import Bytes, Subwords, train_bpe
from zoo.model import build_model
from zoo.recipe import load_recipe
from zoo.training.export import export
from zoo.training.run_folder import RunFolder

TINY = Path(__file__).parents[3] / "recipes" / "tiny"
TEXTS = [f"def attend(query_{i}, key, value): return 'naïve 注意 {i}'\n" * 5 for i in range(50)]
SMALL = ("model.d_model=64", "model.ffn.d_ff=96", "model.layers=ansa*2")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bpe() -> Subwords:
    return train_bpe(BpeTokenizer(kind="bpe", vocab_size=264, min_frequency=1), TEXTS)


@pytest.fixture(scope="session")
def run(tmp_path_factory, bpe) -> Callable[..., Path]:
    """`run("data.tokenizer.kind=bpe")`: a run folder as training leaves it, of small untrained weights."""
    made: dict[tuple, Path] = {}

    def make(*overrides: str) -> Path:
        if overrides not in made:
            recipe = load_recipe(TINY / "ansa.yaml", [*SMALL, *overrides])
            tokenizer = recipe.data.resolved_tokenizer()
            known = {"byte": Bytes(), "bpe": bpe}
            folder = RunFolder(tmp_path_factory.mktemp("run"))
            folder.recipe.write_text(recipe.dump())
            export(folder, recipe, build_model(recipe).state_dict(), tokenizer and known[tokenizer.kind])
            made[overrides] = folder.path
        return made[overrides]

    return make


@pytest.fixture(scope="session")
def model(run):
    """The small model with the byte tokenizer."""
    import zoo

    return zoo.load(run())
