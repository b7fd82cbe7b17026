"""`zoo train --devices N`: one process for each device of this machine, whose end is one message and one exit code.

torchrun does the same, and ends with a traceback of its own whenever a process fails or a signal stops it.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.child import python_module
from zoo.errors import Problem, RecipeError
from zoo.processes import LAUNCHED, MESSAGE_FILE, STOP_SIGNALS, cores
from zoo.terminal import err

NAMES_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
POLL_S = 0.1
ALONE_S = 5.0  # after one process failed: the others may fail of the same, each with its own message
GRACE_S = 30.0  # after SIGTERM: the others may wait for the one that failed, in an exchange that never ends
INTERRUPTED = 130


@dataclass
class Child:
    """The process of one device."""

    rank: int
    process: subprocess.Popen
    message_file: Path
    ended_s: float | None = None
    code: int = 0  # when it has ended; minus the signal's number if a signal ended it

    @property
    def message(self) -> str:
        """What it would have printed last on a terminal of its own."""
        return self.message_file.read_text(encoding="utf-8") if self.message_file.exists() else ""


def launch(devices: int, arguments: Sequence[str]) -> int:
    """Run `python -m zoo` with these arguments once for each device, and return the exit code of the whole.

    Each process gets its share of the cores as OMP_NUM_THREADS, unless that is set. Signals that stop a training are
    passed on. The first process prints; of the others only messages of failures are shown, each once. If one fails
    alone, the others are asked to stop, and killed after `GRACE_S`.
    Raises RecipeError if a launcher has started this process, or if the machine has fewer GPUs.
    """
    _check(devices)
    from torch.distributed import TCPStore

    # Held here, so that its port is known before a process starts and no other program can take it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="zoo-launch-") as folder:
        children: list[Child] = []
        command = python_module("zoo", arguments)
        with _Forwarding(children) as forwarding:
            for rank in range(devices):
                message_file = Path(folder) / str(rank)
                environment = _environment(rank, devices, store.port, message_file)
                # A session of its own: Ctrl-C on the terminal reaches it through this process, once.
                process = subprocess.Popen(command, env=environment, start_new_session=True)
                children.append(Child(rank, process, message_file))
            forwarding.catch_up()
            _wait(children, forwarding)
        return _told(children)


def _check(devices: int) -> None:
    if any(name in os.environ for name in NAMES_OF_LAUNCHERS):
        raise RecipeError([Problem("a launcher has started this process already; leave it out", key="--devices")])
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < devices:
        raise RecipeError([Problem(f"this machine has only {gpus}; found {devices}", key="--devices")])


def _environment(rank: int, devices: int, port: int, message_file: Path) -> dict[str, str]:
    """What torch.distributed and Composer read to find the other processes, besides our own environment."""
    return {
        "OMP_NUM_THREADS": str(max(1, cores() // devices)),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is the launcher's, for the first process as well
        "TORCHELASTIC_RESTART_COUNT": "0",  # part of the keys in that store
        LAUNCHED: "1",
        MESSAGE_FILE: str(message_file),
    }


class _Forwarding:
    """Passes signals on to the processes, for the length of a `with`.  received: whether any came."""

    def __init__(self, children: Sequence[Child]):
        self._children = children
        self._early: list[int] = []  # came while processes were being started
        self._ready = False
        self.received = False

    def __enter__(self) -> "_Forwarding":
        ignored = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else []  # nohup
        self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS if number not in ignored}
        for number in self._before:
            signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def catch_up(self) -> None:
        """Pass on what came before all processes were there."""
        self._ready = True
        for number in self._early:
            self._send(number)

    def _handle(self, number: int, frame) -> None:
        self.received = True
        if self._ready:
            self._send(number)
        else:
            self._early.append(number)

    def _send(self, number: int) -> None:
        for child in self._children:
            child.process.send_signal(number)  # does nothing if it has ended


def _wait(children: Sequence[Child], forwarding: _Forwarding) -> None:
    """Until every process has ended."""
    asked: set[int] = set()  # signals of ours that may end a process: Python obeys no handlers as it ends
    while True:
        now = time.monotonic()
        if forwarding.received:
            asked |= set(STOP_SIGNALS)
        for child in children:
            if child.ended_s is None and (code := child.process.poll()) is not None:
                child.ended_s, child.code = now, INTERRUPTED if -code in asked else code
        running = [child for child in children if child.ended_s is None]
        if not running:
            return
        failed_s = min((child.ended_s or 0.0 for child in children if _failed(child)), default=now)
        if now - failed_s > ALONE_S and not asked:
            _send(running, asked, signal.SIGTERM)
        if now - failed_s > ALONE_S + GRACE_S:
            _send(running, asked, signal.SIGKILL)
        time.sleep(POLL_S)


def _send(running: Sequence[Child], asked: set[int], number: int) -> None:
    asked.add(number)
    for child in running:
        child.process.send_signal(number)


def _failed(child: Child) -> bool:
    return child.ended_s is not None and child.code not in (0, INTERRUPTED)


def _told(children: Sequence[Child]) -> int:
    """Print what the first process has not said; the exit code of the whole: that of the first failure."""
    failed = sorted(filter(_failed, children), key=lambda child: child.ended_s or 0.0)
    said = {children[0].message}
    for child in failed:
        text = _ended_by(child) if child.code < 0 else child.message
        if text and text not in said:
            said.add(text)
            err(f"process {child.rank} of {len(children)}: {text}")
    if failed:
        return max(failed[0].code, 1)
    return max(child.code for child in children)


def _ended_by(child: Child) -> str:
    name = signal.Signals(-child.code).name
    return f"ended by {name}; the same command continues from the last checkpoint"
