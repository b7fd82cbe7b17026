"""What the system did to a training, in one line with a way out: killed readers, full disks, exhausted limits.

The errors of torch, gloo, Streaming and the operating system for these have no type in common, so their text is read.
"""

import errno
import os
import re
import shutil

from zoo import address_space
from zoo.blocks import making
from zoo.blocks.making import PartError
from zoo.data.stale import SHARED_MEMORY
from zoo.memory import RAN_OUT

HEADROOM_BYTES = 256 << 20  # a tiny model trains in it; with 80 MB left the process was aborted
PEER_LOST = "the connection to another process of this run, whose own output says why, was lost"

_READER = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by signal: (\w[\w ]*)|exited unexpectedly)"
)
_IN_READER = re.compile(r"Caught (\w+) in DataLoader worker process")
_SHARED = re.compile(r"shared memory|/torch_\d+|\bshm\b|/dev/shm", re.I)
_PEER = re.compile(
    r"connection (?:closed|reset) by peer|connection refused|gloo|socket|NCCL|broken pipe|process group|TCPStore", re.I
)
_THREADS = re.compile(
    r"can'?t start new thread|pthread_create|thread constructor failed|libgomp: Thread creation", re.I
)


def explain(error: BaseException) -> str | None:
    """What happened and what to do about it, for a failure that is not the zoo's; None for any other error."""
    text = _text(error)
    number = _errno(error)
    if (killed := _READER.search(text)) is not None:
        return _killed_reader(killed[1].strip(), killed[2])
    if _SHARED.search(text) and (number == errno.ENOSPC or "No space left" in text or "unable to" in text):
        return f"{_first_line(text)}; {_shared_memory()}"
    absent = isinstance(error, ModuleNotFoundError)  # which no limit is the reason of
    if isinstance(error, ImportError) and not absent and (limit := address_space.limit()) is not None:
        return (
            f"{_first_line(str(error))}; this shell limits the address space of a process to {limit / 1e9:,.1f} GB: "
            "raise the limit (ulimit -v unlimited)"
        )
    if isinstance(error, MemoryError) or number == errno.ENOMEM or RAN_OUT.search(text):
        return (
            f"{_first_line(text) or 'out of memory'}; a smaller train.micro_batch, or train.activation_checkpointing="
            "true, needs less (zoo cost estimates it); raise a limit on memory (ulimit -v) if there is one"
        )
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        return f"too many open files{_at(error)}; raise the limit (ulimit -n 4096), or set train.workers to 0"
    if number == errno.EAGAIN or _THREADS.search(text):
        return (
            "the system allows no more processes or threads; raise the limit (ulimit -u, or pids.max of the "
            "container), set OMP_NUM_THREADS to a small number, or train.workers to 0"
        )
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"{_os_error(error)}; make room on that disk"
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{_os_error(error)}; this user must be able to read and write there"
    if isinstance(error, RuntimeError) and _PEER.search(text):
        return f"{PEER_LOST}: {_first_line(text)}"
    if "No usable temporary directory" in text:
        return "no folder for temporary files can be written; set TMPDIR to one that can"
    return _os_error(error) if isinstance(error, OSError) else None


def in_reader(error: BaseException) -> str | None:
    """The message alone of an error that came from a process that reads rows: torch sends its traceback along."""
    text = str(error)
    if _IN_READER.search(text) is None:
        return None
    last = text.strip().splitlines()[-1]
    return last.split(": ", 1)[1] if ": " in last else last


def _killed_reader(pids: str, signal_name: str | None) -> str:
    if signal_name and "bus error" in signal_name.lower():
        return f"process {pids}, which reads rows, found {SHARED_MEMORY} full; {_shared_memory()}"
    if not signal_name:
        return f"process {pids}, which reads rows, ended; if it said no reason, give the job more memory"
    how = f"was killed ({signal_name.strip()})"
    return (
        f"process {pids}, which reads rows, {how}; the system does that when memory runs out: lower train.workers, "
        "or give the job more memory"
    )


def _shared_memory() -> str:
    try:
        free = f", where {shutil.disk_usage(SHARED_MEMORY).free / 1e6:,.1f} MB are free,"
    except OSError:
        free = ""
    return (
        f"{SHARED_MEMORY}{free} is too small for the rows that train.workers hand over: make it larger (docker run "
        "--shm-size=1g; mount -o remount,size=1g /dev/shm), or set train.workers to 0"
    )


def check_headroom() -> None:
    """Raise MemoryError if the engine, now imported, leaves too little of the address space that the shell allows.

    Libraries written in Rust abort the process at the next allocation.
    """
    limit, taken = address_space.limit(), address_space.taken()
    if limit is None or taken is None:
        return
    if limit - taken < HEADROOM_BYTES:
        raise MemoryError(
            f"PyTorch and the engine take {taken / 1e9:,.1f} GB of address space, and this shell allows a process "
            f"{limit / 1e9:,.1f} (ulimit -v)"
        )


def explained(error: Exception) -> str | None:
    """One line about too little memory, or about what a part of another package did; None for any other error."""
    if isinstance(error, MemoryError | RuntimeError) and (told := out_of_memory(error)) is not None:
        return told  # torch raises RuntimeError
    return str(error) if isinstance(error, PartError) else making.explain(error)


def out_of_memory(error: BaseException) -> str | None:
    """One line about an error that says that memory ran out; None for any other error."""
    text = _text(error)
    if not isinstance(error, MemoryError) and not RAN_OUT.search(text):
        return None
    return f"out of memory: {_first_line(text) or type(error).__name__}; give fewer or shorter rows, or a smaller model"


def _text(error: BaseException | None) -> str:
    """The error's message, and those it was raised from: torch buries the system's word under its own."""
    found, seen = [], set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        found.append(in_reader(error) or str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(found)


def _errno(error: BaseException | None) -> int | None:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def _os_error(error: BaseException) -> str:
    seen = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        if isinstance(inner, OSError) and inner.errno is not None:
            return f"[Errno {inner.errno}] {inner.strerror or os.strerror(inner.errno)}{_at(inner)}"
        inner = inner.__cause__ or inner.__context__
    return _first_line(str(error))


def _at(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f": {str(name)!r}" if name else ""


def _first_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[0].strip() if lines else ""
