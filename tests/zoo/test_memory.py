"""Free memory: what the system, a container or a limit on the address space leaves."""

import pytest
import torch

from zoo import memory
from zoo.memory import free_bytes, free_host_bytes, ran_out

GIB = 1 << 30


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system of its own: called with the texts of its files, by name."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return write


def test_what_is_available_counts_where_there_is_no_limit(system):
    assert free_host_bytes() is None
    system({"meminfo": "MemTotal: 9 kB\nMemAvailable:    2097152 kB\n", "memory.max": "max\n"})
    assert free_host_bytes() == 2 * GIB


@pytest.mark.parametrize(
    "names",
    [
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (*(f"memory/memory.{each}" for each in ("limit_in_bytes", "usage_in_bytes", "stat")), "total_inactive_file"),
    ],
)
def test_a_container_has_what_its_limit_leaves_and_what_can_be_dropped(system, names):
    limit, used, stat, dropped = names
    files = {"meminfo": f"MemAvailable: {8 << 20} kB\n", stat: f"file 7\n{dropped} {GIB // 2}\n"}
    system({**files, limit: f"{4 * GIB}\n", used: f"{3 * GIB}\n"})
    assert free_host_bytes() == 1.5 * GIB
    system({limit: f"{64 * GIB}\n"})
    assert free_host_bytes() == 8 * GIB
    system({limit: f"{GIB}\n"})
    assert free_host_bytes() == 0


def test_a_limit_on_the_address_space_counts_on_a_cpu(system, monkeypatch):
    system({"meminfo": f"MemAvailable: {8 << 20} kB\n"})
    monkeypatch.setattr(memory.address_space, "limit", lambda: 5 * GIB)
    monkeypatch.setattr(memory.address_space, "taken", lambda: 2 * GIB)
    assert free_bytes(torch.device("cpu")) == 3 * GIB
    assert free_bytes(torch.device("meta")) is None


@pytest.mark.gpu
def test_what_pytorch_has_reserved_and_does_not_use_is_free():
    device = torch.device("cuda")
    before = free_bytes(device)
    held = torch.empty(GIB, dtype=torch.uint8, device=device)
    assert before - free_bytes(device) == pytest.approx(GIB, rel=0.1)
    del held
    assert free_bytes(device) == pytest.approx(before, rel=0.01)


def test_what_libraries_say_when_memory_runs_out_is_known():
    for error in (
        MemoryError(),
        torch.OutOfMemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        outer = ValueError("generation failed")
        outer.__cause__ = error
        assert ran_out(error)
        assert ran_out(outer)
    assert not ran_out(RuntimeError("shapes differ"))
    assert not ran_out(None)
