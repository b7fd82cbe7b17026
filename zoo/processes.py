"""Processes that a run starts to read rows or to tokenise: they outlive a signal to the group, and never the run.

Slurm, systemd, `timeout` and a terminal's Ctrl-C signal every process of a run at once.  The run itself decides what
that means (zoo/training/interrupts.py); a helper process that died of it would take the unsaved work along.

    with sheltered():               # in the run: children are born with the stop signals blocked
        start the processes
    stay_with_parent()              # in each child, first of all
"""

import contextlib
import ctypes
import faulthandler
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

from zoo.child import LAUNCHED
from zoo.child import MESSAGE_PIPE as MESSAGE_PIPE

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
DUMP_STACKS = signal.SIGUSR2  # from the parent: write the stacks of all threads, and go on
WATCH_S = 1.0  # how soon a child leaves where the system cannot end it with its parent
_PR_SET_PDEATHSIG = 1
stacks: Path | None = None  # where a forked child appends its stacks; set before it is forked


@contextlib.contextmanager
def sheltered() -> Iterator[None]:
    """Block the stop signals for the length of a `with`; what is started in it inherits that for life.

    A signal that arrives meanwhile reaches this process at the end of the `with`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # Started here if it does not run yet, or with the first process: and then it unblocks SIGTERM and SIGINT.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_resource_tracker() -> None:
    """Start Python's keeper of shared memory, sheltered, before anything else does.

    Python lets it ignore SIGINT and SIGTERM only; SIGHUP or SIGUSR1 to the group would end it.  It cleans up without a
    word after a process that was killed: its warning would come after the line that says why.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        with sheltered():
            pass
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def stay_with_parent() -> None:
    """Tie a child process to its parent: it ends with it, at the latest `WATCH_S` later, and by nobody else's SIGTERM.

    Of the stop signals, which must be blocked (`sheltered`), it obeys SIGTERM from the parent; at `DUMP_STACKS` from
    the parent it appends its stacks to the file `stacks`, if one is set.
    """
    parent = os.getppid()
    end_with_parent(signal.SIGKILL)
    if not hasattr(signal, "sigtimedwait"):  # macOS: the children ignore the signals
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return
    threading.Thread(target=_watch, args=(parent,), name="stay-with-parent", daemon=True).start()


def processor() -> str:
    """The name of the processor of this machine, as a run records it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.is_file() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launched() -> bool:
    """Whether `zoo train --devices`, torchrun or Composer's launcher started this process, and not through a shell."""
    if LAUNCHED in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return True
    with contextlib.suppress(OSError):
        arguments = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
        return any(os.path.basename(each) == b"composer" or each == b"composer.cli.launcher" for each in arguments)
    return False


def end_with_parent(number: int) -> None:
    """Ask Linux to send this process a signal when the thread that started it ends, as it does with its process."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def end_with_launcher() -> None:
    """Ask for SIGTERM when the launcher of this process ends.  It is sent now if the launcher has ended already."""
    end_with_parent(signal.SIGTERM)
    launcher = int(os.environ.get(LAUNCHED, 0))
    if launcher and os.getppid() != launcher and not os.path.exists(f"/proc/{launcher}"):
        os.kill(os.getpid(), signal.SIGTERM)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        told = signal.sigtimedwait(STOP_SIGNALS, WATCH_S)
        if told is None or told.si_pid != parent:
            continue
        if told.si_signo == signal.SIGTERM:
            os._exit(0)
        if told.si_signo == DUMP_STACKS and stacks is not None:
            dump_stacks(stacks, f"process {os.getpid()}, which reads rows")
    os._exit(1)  # the parent was killed


def dump_stacks(path: Path, title: str) -> None:
    """Append the stacks of all threads of this process to a file."""
    with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
        file.write(f"--- {title}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
