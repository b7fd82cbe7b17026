"""A tiny recipe over a small text, prepared once; one thread, so that sums are the same in every process."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo import load_recipe
from zoo.recipe import Recipe

RECIPE = """\
name: tiny
seed: 3
model:
  d_model: 16
  vocab_size: 264
  max_seq_len: 32
  ffn: {{kind: swiglu, d_ff: 32}}
  blocks:
    ansa: {{kind: ansa, n_heads: 2, n_kv_heads: 1, rope_dim: 4, window: 8, n_selected: 3}}
  layers: ansa*2
data:
  source: {{kind: text, paths: [{text}]}}
  validation_fraction: 0.3
  cache_dir: {cache}
train:
  duration: 12ba
  batch_size: 4
  workers: 0
  optimizer: {{lr: 1e-2}}
  schedule: {{warmup: 2ba}}
  checkpoint: {{every: 4ba}}
eval: {{every: 6ba, batches: 2}}
"""


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of 12 batches of 4 rows of 32 bytes; an epoch is some 50 batches."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "text").mkdir()
    words = ["window", "latent", "block", "token", "head", "layer"]
    for i in range(24):
        content = " ".join(np.random.default_rng(i).choice(words, 60))
        (folder / "text" / f"{i:02}.txt").write_text(content)
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(text=folder / "text", cache=folder / "cache"))
    return path


@pytest.fixture
def recipe(recipe_file: Path) -> Callable[..., Recipe]:
    """`recipe("train.duration=20ba", ...)`: the tiny recipe with keys set as after --set."""
    return lambda *overrides: load_recipe(recipe_file, overrides)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Environment of a child process that computes the same bits as this one.

    A temporary folder of its own, for locks, whose path is short enough for sockets: pytest's may not be.
    """
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        yield os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": folder, "COLUMNS": "200"}
