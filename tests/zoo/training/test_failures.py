"""One line for what the system does to a training: the texts that torch, gloo and the system give."""

import errno
import re

import pytest

from zoo.data.errors import DataError
from zoo.training.failures import explain, in_reader


def raised_from(error, cause):
    try:
        raise error from cause
    except type(error) as raised:
        return raised


FAILURES = [
    (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        "process 7, .*was killed .Killed.*memory",
    ),
    (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "process 7, 8, which reads rows, ended; "),
    (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"),
        "process 7, which reads rows, found /dev/shm full; .*shm-size",
    ),
    (
        RuntimeError("unable to allocate shared memory(shm) for file </torch_7_8_0>: No space left on device (28)"),
        "torch_7.*; /dev/shm, where .* MB are free, is too small .*train.workers to 0",
    ),
    (
        OSError(errno.ENOSPC, "No space left on device", "run/log.txt"),
        "No space left on device: 'run/log.txt'; make room",
    ),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), "Disk quota exceeded: 'x'; make room"),
    (OSError(errno.EROFS, "Read-only file system", "x"), "Read-only file system: 'x'; this user must"),
    (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied: 'x'; this user must"),
    (OSError(errno.EIO, "Input/output error", "x"), "Input/output error: 'x'$"),
    (OSError(errno.EMFILE, "Too many open files", "x"), "too many open files: 'x'; raise the limit .ulimit -n"),
    (RuntimeError("Too many open files. Communication with the workers"), "too many open files; raise the limit"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "no more processes or threads"),
    (RuntimeError("can't start new thread"), "no more processes or threads; .*OMP_NUM_THREADS"),
    (MemoryError(), "^out of memory; a smaller train.micro_batch, or train.activation_checkpointing=true"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory; a smaller"),
    (
        RuntimeError("[enforce fail at x.cpp:1] . DefaultCPUAllocator: can't allocate memory: you"),
        "allocate memory: you; ",
    ),
    (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0"), "Tried to allocate 2.00 GiB.; a smaller"),
    (
        RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2042"),
        "the connection to another process of this run, whose own output says why, was lost: .*2042",
    ),
    (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "set TMPDIR"),
    (
        raised_from(
            RuntimeError("[enforce fail at inline_container] unexpected pos 64"), OSError(errno.ENOSPC, "full", "x")
        ),
        "full: 'x'; make room",
    ),
]


@pytest.mark.parametrize(("error", "told"), FAILURES)
def test_a_failure_of_the_system_is_one_line_with_a_way_out(error, told):
    line = explain(error)
    assert re.search(told, line), line
    assert "\n" not in line


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("shapes differ"), KeyError("shm")])
def test_a_bug_is_not_explained_away(error):
    assert explain(error) is None


def test_a_limit_on_address_space_is_not_why_a_module_is_absent(monkeypatch):
    monkeypatch.setattr("zoo.address_space.limit", lambda: 4_000_000_000)
    assert "raise the limit (ulimit -v" in explain(ImportError("libtorch.so: failed to map segment"))
    assert explain(ModuleNotFoundError("No module named 'strange'")) is None


def test_an_error_of_the_zoo_in_a_reader_is_told_without_its_traceback():
    text = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
    assert in_reader(DataError(f"{text}zoo.data.errors.DataError: s.mds: this shard is missing\n")) == (
        "s.mds: this shard is missing"
    )
    assert in_reader(DataError("s.mds: this shard is missing")) is None
