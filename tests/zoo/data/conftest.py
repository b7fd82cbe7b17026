"""Small text, small rows, a cache of its own for every test."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from zoo.data import PreparedData, prepare
from zoo.data.config import DataConfig

WORDS = ["attention", "window", "latent", "block", "token", "head", "layer", "naïve", "Größe", "注意"]


def text(seed: int, n_words: int = 60) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, n_words))


@pytest.fixture(autouse=True, scope="session")
def lock_files_aside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("locks"))
    yield
    tempfile.tempdir = before


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of 40 documents, one a file."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(text(i), encoding="utf-8")
    return folder


@pytest.fixture
def prep(tmp_path: Path) -> Callable[..., PreparedData]:
    """`prep({...}, cache="a", ...)`: prepare a data section for rows of 32 tokens and a vocabulary of 1,000."""

    def prepare_small(data: dict, cache: str = "cache", **settings) -> PreparedData:
        settings = {"max_seq_len": 32, "vocab_size": 1000, "seed": 17, "quiet": True} | settings
        return prepare(DataConfig.model_validate(data), cache_dir=tmp_path / cache, **settings)

    return prepare_small


@pytest.fixture
def of_text(corpus: Path) -> Callable[..., dict]:
    """`of_text(...)`: a data section over `corpus`, a fifth of it held out."""
    return lambda **more: {"source": {"kind": "text", "paths": [str(corpus)]}, "validation_fraction": 0.2} | more
