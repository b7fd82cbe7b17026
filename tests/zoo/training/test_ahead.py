"""Kernels compiled ahead: which layers, when at all, and that a process that fails is no harm."""

import json
import os
from pathlib import Path

import pytest

import zoo
from zoo.training import ahead

RECIPES = Path(__file__).parents[3] / "recipes" / "tiny"


@pytest.fixture
def tiny():
    return lambda name, *overrides: zoo.load_recipe(str(RECIPES / f"{name}.yaml"), overrides=list(overrides))


@pytest.fixture
def gpu_there(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda self, exists=Path.exists: self.name == "nvidiactl" or exists(self))
    monkeypatch.setattr(ahead, "cores", lambda: 16)
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_one_layer_of_each_kind(tiny):
    assert ahead._jobs(tiny("full")) == [0]
    assert ahead._jobs(tiny("ansa")) == [0, 1]


def test_where_it_is_wanted(tiny, gpu_there, monkeypatch):
    assert ahead._wanted(tiny("full"))
    assert not ahead._wanted(tiny("full", "train.kernels=reference"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not ahead._wanted(tiny("full"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for rank in (0, 1):  # of the processes of one machine
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert ahead._wanted(tiny("full")) is (rank == 0)
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setattr(ahead, "cores", lambda: 2)
    assert not ahead._wanted(tiny("full"))


def test_shapes_are_those_of_one_device(tiny, monkeypatch):
    recipe = tiny("full", "train.batch_size=32")
    monkeypatch.setenv("WORLD_SIZE", "2")
    of_two = ahead._mark(recipe, 0)
    monkeypatch.delenv("WORLD_SIZE")
    assert of_two == ahead._mark(tiny("full", "train.batch_size=16"), 0) != ahead._mark(recipe, 0)


def test_without_a_gpu_nothing_is_started(tiny, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with ahead.Ahead(tiny("ansa")) as found:
        assert found.processes == []
        assert found.wait() < 1


@pytest.mark.slow
def test_a_process_that_fails_leaves_no_mark_and_stops_nothing(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(ahead, "_wanted", lambda recipe: True)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it fails where there is a GPU too
    with ahead.Ahead(tiny("full")) as found:
        (process,) = found.processes
        found.wait()
        assert process.returncode not in (None, 0)
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_the_context_ends_the_processes(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(ahead, "_wanted", lambda recipe: True)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with ahead.Ahead(tiny("full")) as found:
        (process,), folder = found.processes, found.folder.name
        assert os.path.exists(folder)
    assert process.poll() is not None
    assert not os.path.exists(folder)


def test_what_was_compiled_is_not_compiled_again(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(ahead, "_wanted", lambda recipe: True)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    recipe, other = tiny("full"), tiny("full", "train.batch_size=3")
    ahead._mark(recipe, 0).touch()
    with ahead.Ahead(recipe) as found:
        assert found.processes == []
    assert ahead._mark(other, 0) != ahead._mark(recipe, 0)
    assert ahead._mark(tiny("full", "name=another", "seed=3"), 0) == ahead._mark(recipe, 0)


def test_a_mark_is_of_the_code_of_the_kernels(tiny, monkeypatch):
    before = ahead._mark(tiny("full"), 0)
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: [])
    assert ahead._mark(tiny("full"), 0) != before


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("overrides", [[], ["model.document_mask=true", "train.batch_size=1"]])
def test_a_layer_makes_a_step(index, overrides, tiny):
    found = ahead.compile_layer(tiny("ansa", *overrides), index, "cpu")
    assert list(found) == ["step_s"]


@pytest.mark.parametrize("can", [False, True])
def test_a_pass_that_fails_or_cannot_be_is_followed_by_the_step(can, tiny, monkeypatch):
    from zoo.training import compile_only

    steps = []

    def fail(step, threads):
        raise ValueError(f"no {threads} threads")

    monkeypatch.setattr(compile_only, "can_compile_only", lambda: can)
    monkeypatch.setattr(compile_only, "compile_only", fail)
    monkeypatch.setattr(ahead, "_layer_step", lambda recipe, index, device: lambda: steps.append(index))
    found = ahead.compile_layer(tiny("full"), 0, "cpu", threads=4)
    assert steps == [0]
    assert found.get("error") == ("ValueError: no 4 threads" if can else None)
    assert set(found) == ({"error", "pass_s", "step_s"} if can else {"step_s"})


def test_the_pass_comes_before_the_step(tiny, monkeypatch):
    from zoo.training import compile_only

    calls = []
    monkeypatch.setattr(compile_only, "can_compile_only", lambda: True)
    monkeypatch.setattr(compile_only, "compile_only", lambda step, threads: calls.append(("pass", threads)) or 7)
    monkeypatch.setattr(ahead, "_layer_step", lambda *_: lambda: calls.append("step"))
    found = ahead.compile_layer(tiny("full"), 0, "cpu", threads=4)
    assert calls == [("pass", 4), "step"]
    assert found["kernels"] == 7


def test_a_process_whose_gpu_is_unusable_starts_again_without_the_pass(tiny, monkeypatch, tmp_path):
    from zoo import processes

    class Replaced(Exception):
        pass

    def compile_layer(recipe, index, threads):
        raise ahead.Poisoned("device-side assert")

    def execv(path, command):
        raise Replaced(command)

    monkeypatch.setattr(processes, "stay_with_parent", lambda: None)
    monkeypatch.setattr(ahead, "compile_layer", compile_layer)
    monkeypatch.setattr(os, "execv", execv)
    mark = tmp_path / "mark"
    with pytest.raises(Replaced) as raised:
        ahead.main(str(RECIPES / "full.yaml"), "0", str(mark), "8")
    assert raised.value.args[0][-5:] == ["zoo.training.ahead", str(RECIPES / "full.yaml"), "0", str(mark), "1"]
    assert not mark.exists()


@pytest.mark.parametrize(("cores", "threads"), [(4, "2"), (16, "8"), (64, "8"), (1, "1")])
def test_the_processes_share_the_cores(cores, threads, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(ahead, "_wanted", lambda recipe: True)
    monkeypatch.setattr(ahead, "cores", lambda: cores)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with ahead.Ahead(tiny("ansa")) as found:
        assert [process.args[-1] for process in found.processes] == [threads, threads]


@pytest.mark.gpu
def test_the_process_leaves_compiled_kernels(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    recipe = tiny("ansa")
    with ahead.Ahead(recipe) as found:
        found.wait()
        assert [process.returncode for process in found.processes] == [0, 0]
    for job in (0, 1):
        took = json.loads(ahead._mark(recipe, job).read_text())
        assert "error" not in took
        assert took["kernels"] >= 15
    assert len(list(tmp_path.rglob("_selection_fwd_kernel.cubin"))) == 1


def test_kernels_of_another_package_are_compiled_again_when_it_comes_or_changes(tiny, monkeypatch, tmp_path):
    import importlib.metadata

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    versions = {"torch": "2.11.0", "triton": "3.6.0", "fla-core": "0.6.0"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    marks = [ahead._mark(tiny("gated_deltanet"), 0)]
    versions["fla-core"] = "0.6.1"
    marks.append(ahead._mark(tiny("gated_deltanet"), 0))
    del versions["fla-core"]
    marks.append(ahead._mark(tiny("gated_deltanet"), 0))
    assert len(set(marks)) == 3
