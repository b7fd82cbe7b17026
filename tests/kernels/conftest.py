"""What the tests of kernels share: the naive formulas, seeded tensors, documents, and chunks small enough to matter."""

import importlib.util
from contextlib import contextmanager
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


@contextmanager
def poison():
    """New memory holds NaN, or the largest integer, so that an element that no kernel writes is seen."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def poisoned():
    """`with poisoned():` around the calls whose new memory is to hold NaN."""
    return poison


@pytest.fixture
def agree():
    """agree(function, tensors, bound): function(*tensors, impl="triton") against the reference in float64, by relative
    RMS: outputs and all gradients. None passes through; inputs are rounded to dtype first. Memory is poisoned. On a
    GPU, twice the same."""

    def run(function, tensors, impl, dtype):
        inputs = [None if x is None else x.to(dtype).detach().clone().requires_grad_() for x in tensors]
        output = function(*inputs, impl=impl)
        outputs = output if isinstance(output, tuple) else (output,)
        noise = torch.Generator().manual_seed(5)
        grads = [torch.randn(o.shape, generator=noise).to(o) for o in outputs]
        pairs = [(o, grad) for o, grad in zip(outputs, grads, strict=True) if o.requires_grad]
        given = [x for x in inputs if x is not None]
        return [*outputs, *torch.autograd.grad([o for o, _ in pairs], given, [grad for _, grad in pairs])]

    def check(function, tensors, bound=1e-5, dtype=torch.float32):
        rounded = [None if x is None else x.to(dtype) for x in tensors]
        with poison():
            found = run(function, rounded, "triton", dtype)
        expected = run(function, rounded, "reference", torch.float64)
        for i, (x, y) in enumerate(zip(found, expected, strict=True)):
            x, y = x.double(), y.double()
            assert torch.equal(x.isinf(), y.isinf()), f"result {i}: infinite elsewhere"
            x, y = (z.masked_fill(y.isinf(), 0.0) for z in (x, y))
            error, size = (x - y).norm().item(), y.norm().item()
            assert error <= bound * max(size, 0.1), f"result {i}: error {error:.1e} beside a norm of {size:.1e}"
        if found[0].is_cuda:
            again = run(function, rounded, "triton", dtype)
            assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True)), "two runs differ"

    return check
