"""Where Triton kernels are tested: on a GPU (`gpu`), or without one through Triton's interpreter (`interp`)."""

import os

import pytest

from tests.thinning import thin

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")

# Each of several pytest processes computes with one thread, and so do the processes that it starts: at these sizes a
# second thread costs more than it saves, and on loaded cores threads that wait for each other cost several times more.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton decides at import whether its own library functions are interpreted, so this must precede every import of it.
if not any(os.path.exists(device) for device in _GPU_DEVICES):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def plugins_of_one_test(monkeypatch):
    """A plugin that a recipe of one test names is not imported by the processes that later tests start."""
    monkeypatch.setattr("zoo.blocks.plugins._named", {})


def pytest_runtest_setup(item: pytest.Item) -> None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if item.get_closest_marker("interp"):
        if not interpreted:
            pytest.skip("Triton compiles here; TRITON_INTERPRET=1 pytest -m interp runs this test")
        pytest.importorskip("triton")
    if item.get_closest_marker("gpu"):
        if interpreted:
            pytest.skip("needs a CUDA GPU, and Triton not interpreting")
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Triton 3.6's interpreter makes loop bounds from arrays of one element, which NumPy deprecates.

    Of a test that is `thinned(n)`, about 1 / n of the cases are for every run, and the others are for `-m long`.
    """
    for item in items:
        if item.get_closest_marker("interp"):
            item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"))
    thin(items)
