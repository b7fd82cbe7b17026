"""Where runs are processes: how many at a time on a CPU and on GPUs, which are made up here."""

import sys
import time
from dataclasses import dataclass, field

import pytest

from zoo.study import slots as module
from zoo.study.gpus import Mps, visible_gpus
from zoo.study.slots import GIB, Job, Slots

SLEEP = (sys.executable, "-S", "-c", "import time; time.sleep(60)")


@dataclass
class FakeGpu:
    """A GPU of 80 GiB whose memory in use is what a test says."""

    id: str
    name: str = "NVIDIA H200"
    total_bytes: int = 80 * GIB
    used: list = field(default_factory=lambda: [0])

    def used_bytes(self) -> int:
        return self.used[0]


@pytest.fixture
def job(tmp_path):
    return lambda name, kind="full", command=SLEEP: Job(name, command, tmp_path / f"{name}.txt", kind)


@pytest.fixture
def made():
    """Slots that end with the test."""
    found = []

    def make(*arguments, **options) -> Slots:
        found.append(Slots(*arguments, **options))
        return found[-1]

    yield make
    for slots in found:
        slots.stop(kill=True)
        while slots.running():
            slots.ended()
            time.sleep(0.01)
        slots.close()


def start(slots: Slots, job: Job) -> bool:
    if slots.room(job):
        slots.start(job)
        return True
    return False


def test_a_cpu_has_as_many_runs_as_cores_or_memory_allow(monkeypatch):
    slots = Slots(None, cores=8)
    slots.estimates = {"full": 2 * GIB}
    monkeypatch.setattr(module, "total_memory", lambda: 16.0 * GIB)
    assert slots.limit() == 4
    assert slots.threads == 2
    monkeypatch.setattr(module, "total_memory", lambda: 1.0 * GIB)
    assert slots.limit() == 1
    monkeypatch.setattr(module, "total_memory", lambda: 1000.0 * GIB)
    assert slots.limit() == 8
    assert Slots(3, cores=8).limit() == 3


def test_the_first_run_on_a_gpu_is_measured_alone_then_as_many_share_it_as_fit(made, job):
    gpu = FakeGpu("0", used=[2 * GIB])
    slots = made(None, [gpu], cores=16)
    assert start(slots, job("a"))
    assert not start(slots, job("b")), "the first one is measured alone"
    gpu.used[0] = 22 * GIB
    slots.measure([])
    assert not start(slots, job("b")), "it has not trained a batch yet"
    slots.measure(["a"])
    assert slots.needs == {"full": 20 * GIB}
    assert [start(slots, job(name)) for name in "bcd"] == [True, True, False]
    assert "up to 3 runs at a time" in slots.about()


def test_an_architecture_that_needs_more_memory_takes_more_room(made, job):
    gpu = FakeGpu("0")
    slots = made(None, [gpu], cores=16)
    slots.estimates = {"full": 10 * GIB, "wide": 30 * GIB}
    assert start(slots, job("a"))
    gpu.used[0] = 10 * GIB
    slots.measure(["a"])
    assert start(slots, job("b", "wide")), "30 GiB beside 10"
    assert not start(slots, job("c", "wide")), "60 GiB beside 10 are too many with what is to spare"
    assert start(slots, job("d", "full"))


def test_the_runs_on_a_device_are_counted_over_time(made, job, monkeypatch):
    """a: 10 s alone and 20 with b; b: those 20 and then 20 alone; c is on another GPU."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    slots = made(2, [FakeGpu("0"), FakeGpu("1")], cores=16)
    assert start(slots, job("a"))
    assert start(slots, job("c"))
    now[0] += 10
    assert start(slots, job("b"))
    running = slots._running
    assert [running[name].device.id for name in "abc"] == ["0", "0", "1"]
    found = {}
    for name, seconds in (("a", 20), ("b", 20), ("c", 0)):
        now[0] += seconds
        running[name].process.kill()
        running[name].process.wait()
        found |= {each.id: (each.seconds, each.runs_on_device) for each in slots.ended()}
    assert found == {
        "a": (30.0, pytest.approx((10 + 2 * 20) / 30)),
        "b": (40.0, pytest.approx((2 * 20 + 20) / 40)),
        "c": (50.0, 1.0),
    }


def test_every_gpu_is_used_and_each_process_sees_its_own(made, job, tmp_path):
    gpus = [FakeGpu("0"), FakeGpu("1")]
    slots = made(1, gpus, cores=16)
    show = (sys.executable, "-S", "-c", "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.2)")
    assert start(slots, job("a", command=show))
    assert start(slots, job("b", command=show))
    assert not start(slots, job("c"))
    ended = []
    while len(ended) < 2:
        ended += slots.ended()
    assert {each.device for each in ended} == {"0", "1"}
    assert not any(each.shared for each in ended)
    assert {(tmp_path / f"{name}.txt").read_text() for name in "ab"} == {"0\n", "1\n"}


def test_one_run_less_shares_a_gpu_after_its_memory_ran_out():
    gpu = FakeGpu("0")
    slots = Slots(None, [gpu], cores=4)
    slots.needs = {"full": 10 * GIB}
    assert slots.limit() == 4
    assert slots.fewer("0")
    assert slots.limit() == 3
    slots.most["0"] = 1
    assert not slots.fewer("0"), "one alone cannot be fewer"
    assert not Slots(4, [gpu]).fewer("0"), "what the user asked for is kept"


def fake_smi(tmp_path, monkeypatch, text: str) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


ANSWERS = """
case "$*" in
  *query-gpu=index*) echo 0; echo 1;;
  *query-gpu=name,memory.total*) echo "NVIDIA H200, 143771";;
  *query-gpu=memory.used*) echo 1024;;
esac"""


def test_gpus_are_those_of_nvidia_smi_or_of_cuda_visible_devices(tmp_path, monkeypatch):
    fake_smi(tmp_path, monkeypatch, ANSWERS)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = visible_gpus()
    assert [(gpu.id, gpu.name, gpu.total_bytes) for gpu in found] == [
        ("0", "NVIDIA H200", 143771 * 2**20),
        ("1", "NVIDIA H200", 143771 * 2**20),
    ]
    assert found[0].used_bytes() == GIB
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.id for gpu in visible_gpus()] == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_a_driver_that_fails_has_no_gpus(tmp_path, monkeypatch):
    fake_smi(tmp_path, monkeypatch, "exit 9")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == []


def test_mps_is_off_where_there_is_none(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    mps = Mps()
    assert not mps.active
    assert mps.environment() == {}
    mps.close()
