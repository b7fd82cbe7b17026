"""What the tests of kernels share: the naive formulas, seeded tensors, documents, and chunks small enough to matter."""

import importlib.util
from pathlib import Path

import pytest
import torch

import zoo.kernels.attend
from zoo.kernels import Documents


@pytest.fixture(scope="session")
def naive():
    spec = importlib.util.spec_from_file_location("naive", Path(__file__).with_name("naive.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def randn():
    """Independent noise: randn(2, 3) is a float64 tensor, the same in every run of a test."""
    generator = torch.Generator().manual_seed(17)

    def make(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return make


@pytest.fixture
def pack():
    """pack([[3, 4], [7]]) is the Documents of two rows of seven tokens."""

    def make(rows: list[list[int]]) -> Documents:
        ends = torch.tensor([0] + [n for lengths in rows for n in lengths]).cumsum(0)
        return Documents.from_cu_seqlens(ends, len(rows), sum(rows[0]))

    return make


@pytest.fixture(params=["whole", "chunked"])
def chunked(request, monkeypatch):
    """Run with everything in one chunk, then in many, which backward computes again."""
    if request.param == "chunked":
        monkeypatch.setattr(zoo.kernels.attend, "CHUNK_ELEMENTS", 100)
