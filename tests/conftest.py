"""Where Triton kernels are tested: on a GPU (`gpu`), or without one through Triton's interpreter (`interp`)."""

import importlib.util
import os
from functools import cache

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


@cache
def one_tile_a_kernel() -> None:
    """Leave each kernel of flash-linear-attention one tile, because to try all of them takes minutes a test.

    One that needs little memory: `size_of_tile`.  `python -m zoo.bench.linear_tiles` measures which is fast.
    """
    if importlib.util.find_spec("fla") is None:
        return
    import zoo.kernels.convolution.fla
    import zoo.kernels.linear.fla  # noqa: F401
    from zoo.kernels.outside import tuners

    for _, tuner in tuners():
        tuner.configs = [min(tuner.configs, key=size_of_tile)]


def size_of_tile(config) -> tuple[int, int, int]:
    """Order of tiles: by the stages of the pipeline, how far from 4 warps, the numbers of the tile."""
    numbers = [value for value in config.kwargs.values() if isinstance(value, int)]
    return config.num_stages, abs(config.num_warps - 4), sum(numbers)


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
        one_tile_a_kernel()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Triton 3.6's interpreter makes loop bounds from arrays of one element, which NumPy deprecates.

    Of a test that is `thinned(n)`, about 1 / n of the cases are for every run, and the others are for `-m long`.
    """
    for item in items:
        if item.get_closest_marker("interp"):
            item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"))
    thin(items)
