"""Tiles of the linear mixers' kernels: which one is chosen, and that a later process takes it without trying others.

Kernels are not run: no GPU is needed to see which tile one is launched with.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo.bench.linear_tiles import choose
from zoo.kernels import outside

MEASURE = """
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from zoo.bench.linear_tiles import choose, try_all

JITFunction.run = lambda *_, **options: None
Autotuner._bench = lambda self, *_, config, **options: [float(len(self.configs) - self.configs.index(config))]
found = try_all([16], "cpu", 64)
file.write_text(json.dumps({kernel: json.loads(choose(timings)[0]) for kernel, timings in found.items()}))
print(json.dumps({kernel: len(timings) for kernel, timings in found.items()}))
"""
USE = """
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

def refuse(self, *_, **options):
    raise AssertionError(f"{self.base_fn.__name__} tries its tiles")

torch.cuda.is_available = lambda: True  # until the kernels are imported
import zoo.kernels.convolution.fla
import zoo.kernels.linear.fla
torch.cuda.is_available = lambda: False

from zoo.bench.linear_tiles import calls

launched = {}
JITFunction.run = lambda self, *_, **options: launched.setdefault(f"{self.fn.__module__}.{self.fn.__name__}", options)
Autotuner._bench = refuse
for call in calls(32, "cpu", 64):
    call().float().square().mean().backward()
print(json.dumps({name: options["num_warps"] for name, options in launched.items() if "num_warps" in options}))
"""
START = """
import json, sys, warnings
from pathlib import Path

import torch

warnings.simplefilter("ignore")
file = Path(sys.argv[1])
torch.cuda.get_device_name = lambda *_: "A GPU (of tests)"
"""


def run(script: str, file: Path, **variables: str) -> dict:
    """What the script prints, in a process that sees no GPU."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("FLA_", "TRITON_"))}
    environment = {**own, "CUDA_VISIBLE_DEVICES": "", **variables}
    command = [sys.executable, "-c", START + script, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """The file of a GPU that is there by its name alone."""
    pytest.importorskip("fla")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "A GPU (of tests)")
    return outside.tiles_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_later_process_takes_the_chosen_tiles_and_tries_none(gpu, tmp_path):
    measured = run(MEASURE, gpu, FLA_CACHE_RESULTS="0", TRITON_CACHE_DIR=str(tmp_path))
    names = {name.rpartition(".")[2] for name in measured}
    assert {"chunk_fwd_kernel_h", "chunk_kda_bwd_kernel_intra", "causal_conv1d_bwd_kernel"} <= names
    tiles = json.loads(gpu.read_text())
    assert set(tiles) == set(measured)
    launched = run(USE, gpu, TRITON_CACHE_DIR=str(tmp_path))
    assert {name: launched[name] for name in tiles} == {name: tile["num_warps"] for name, tile in tiles.items()}


def test_the_tile_that_is_never_far_from_the_best():
    timings = {"a": {"x": 1.0, "y": 1.2, "z": 1.1}, "b": {"x": 4.0, "y": 2.0, "z": 2.2}}
    assert choose(timings) == ("z", pytest.approx(1.1))
    assert choose({"a": {"x": 3.0}}) == ("x", 1.0)


def test_a_tile_that_fails_with_a_shape_or_is_not_tried_there_is_not_chosen():
    timings = {"a": {"x": 1.0, "y": 5.0, "z": 0.5}, "b": {"x": math.inf, "y": 2.0}}
    assert choose(timings) == ("y", pytest.approx(10.0))
    assert choose({"a": {"x": 1.0}, "b": {"y": 1.0}}) is None
    assert choose({"a": {"x": math.inf}}) is None
    assert choose({}) is None


class Tuner:
    """What `use_tiles` sees of an autotuned kernel."""

    def __init__(self, *warps: int):
        self.configs = [SimpleNamespace(kwargs={"B": 16}, num_warps=n, pre_hook=None) for n in warps]


def test_a_tile_that_a_kernel_does_not_have_leaves_it_all_of_its_own(gpu, monkeypatch):
    known, unknown, unnamed = Tuner(2, 4), Tuner(2, 4), Tuner(2, 4)
    monkeypatch.setattr(outside, "tuners", lambda: iter([("a", known), ("b", unknown), ("c", unnamed)]))
    outside.use_tiles()  # there is no file yet
    assert len(known.configs) == 2
    gpu.write_text(json.dumps({"a": {"kwargs": {"B": 16}, "num_warps": 4}, "b": {"kwargs": {"B": 32}, "num_warps": 4}}))
    outside.use_tiles()
    assert [config.num_warps for config in known.configs] == [4]
    assert [len(tuner.configs) for tuner in (unknown, unnamed)] == [2, 2]


@pytest.mark.parametrize("text", ["", "{", "5", "[1]", '"tiles"', "\xff"])
def test_a_damaged_file_is_named(gpu, monkeypatch, text):
    gpu.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"zoo-linear-tiles-.*\.json: damaged; delete it"):
        outside.use_tiles()


def test_tiles_are_kept_for_a_gpu_and_versions(gpu, tmp_path, monkeypatch):
    versions = {"fla-core": "0.6.0", "triton": "3.6.0"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    name = "zoo-linear-tiles-A_GPU_of_tests_-fla-core-{}-triton-3.6.0.json"
    assert outside.tiles_file() == tmp_path / name.format("0.6.0")
    versions["fla-core"] = "0.6.1"
    assert outside.tiles_file() == tmp_path / name.format("0.6.1")
