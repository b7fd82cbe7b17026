"""`zoo train --devices N`: one process for each device of this machine, whose end is one message and one exit code.

torchrun does the same, and ends with a traceback of its own whenever a process fails or a signal stops it.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from zoo.child import LAUNCHED, MESSAGE_PIPE, python_module
from zoo.errors import Problem, RecipeError, ZooError
from zoo.processes import STOP_SIGNALS, cores
from zoo.terminal import err
from zoo.training.interrupts import AGAIN_AFTER_S

NAMES_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
POLL_S = 0.1
ALONE_S = 5.0  # after one process failed: the others may fail of the same, each with its own message
GRACE_S = 30.0  # after SIGTERM: the others may wait for the one that failed, in an exchange that never ends
AGAIN_S = 10.0  # after the second Ctrl-C: Python runs no handler in an exchange
INTERRUPTED = 130


@dataclass
class Child:
    """The process of one device."""

    rank: int
    process: subprocess.Popen
    messages: int  # the end of its pipe that is read
    ended_s: float | None = None
    code: int = 0  # when it has ended; minus the signal's number if a signal ended it
    message: str = ""  # when it has ended: what it would have printed last on a terminal of its own
    told: bool = False


def launch(devices: int, arguments: Sequence[str], module: str = "zoo") -> int:
    """Run `python -m zoo`, or another module, with these arguments once for each device; returns the exit code of all.

    Each process gets its share of the cores as OMP_NUM_THREADS, unless that is set. Signals that stop or suspend a
    training are passed on. The first process prints; of the others only messages of failures are shown, each once. If
    one ends alone, the others are asked to stop, and killed after `GRACE_S`.
    Raises RecipeError if a launcher has started this process, or if the machine has fewer GPUs; ZooError if the system
    does not start that many processes.
    """
    _check(devices)
    from torch.distributed import TCPStore

    # Held here, so that its port is known before a process starts and no other program can take it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children: list[Child] = []
    command = python_module(module, arguments)
    with _Forwarding(children) as forwarding, _none_left(children):
        with _signals_blocked():  # which they inherit, until they have their handlers
            for rank in range(devices):
                children.append(_start(rank, command, _environment(rank, devices, store.port)))
        forwarding.catch_up()
        _wait(children, forwarding)
    _tell(children, at_the_end=True)
    return _exit_code(children)


def _check(devices: int) -> None:
    if any(name in os.environ for name in NAMES_OF_LAUNCHERS):
        raise RecipeError([Problem("a launcher has started this process already; leave it out", key="--devices")])
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < devices:
        raise RecipeError([Problem(f"this machine has only {gpus}; found {devices}", key="--devices")])


def _environment(rank: int, devices: int, port: int) -> dict[str, str]:
    """What torch.distributed and Composer read to find the other processes, added to our own environment."""
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
        LAUNCHED: str(os.getpid()),
    }


def _start(rank: int, command: Sequence[str], environment: dict[str, str]) -> Child:
    """A pipe for messages needs no disk, and nothing of it stays if this process is killed."""
    try:
        reads, writes = os.pipe()
        os.set_blocking(reads, False)
        os.set_blocking(writes, False)
        # A session of its own: Ctrl-C on the terminal reaches it through this process, once.
        environment = environment | {MESSAGE_PIPE: str(writes)}
        process = subprocess.Popen(command, env=environment, pass_fds=[writes], start_new_session=True)
    except OSError as error:
        from zoo.training.failures import explain

        raise ZooError(f"process {rank} of --devices was not started: {explain(error)}") from error
    os.close(writes)
    return Child(rank, process, reads)


@contextlib.contextmanager
def _signals_blocked():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _none_left(children: Sequence[Child]):
    """Whatever happens here, no process stays behind."""
    try:
        yield
    finally:
        for child in children:
            if child.ended_s is None:
                child.process.kill()
                child.process.wait()
            os.close(child.messages)


class _Forwarding:
    """Passes signals on to the processes, for the length of a `with`.

    received: whether one came.  again_s: when the second Ctrl-C came.
    """

    def __init__(self, children: Sequence[Child]):
        self._children = children
        self._early: list[int] = []  # came while processes were being started: torch's threads take signals too
        self._ready = False
        self._first_s = 0.0
        self.received = False
        self.again_s: float | None = None

    def __enter__(self) -> "_Forwarding":
        handlers = dict.fromkeys(STOP_SIGNALS, self._pass_on)
        handlers |= {signal.SIGTSTP: self._suspend, signal.SIGCONT: self._continue}
        # Of those that are ignored (nohup; a shell without job control) the processes inherit that.
        ignored = {n for n in (signal.SIGHUP, signal.SIGTSTP) if signal.getsignal(n) == signal.SIG_IGN}
        self._before = {number: signal.getsignal(number) for number in handlers if number not in ignored}
        for number in self._before:
            signal.signal(number, handlers[number])
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def catch_up(self) -> None:
        """Pass on what came before all processes were there."""
        self._ready = True
        for number in self._early:
            _send(self._children, number)

    def _pass_on(self, number: int, frame) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._first_s = True, now
        elif number == signal.SIGINT and self.again_s is None and now - self._first_s >= AGAIN_AFTER_S:
            self.again_s = now
        if self._ready:
            _send(self._children, number)
        else:
            self._early.append(number)

    def _suspend(self, number: int, frame) -> None:
        """Ctrl-Z.  SIGSTOP, because the system ignores SIGTSTP for processes in a session of their own."""
        _send(self._children, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _continue(self, number: int, frame) -> None:
        _send(self._children, signal.SIGCONT)


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
                child.message = _read(child.messages)
        running = [child for child in children if child.ended_s is None]
        if not running:
            return
        alone_s = now - min((child.ended_s or 0.0 for child in children if _left_alone(child, forwarding)), default=now)
        if alone_s > ALONE_S and not asked:
            _tell(children)
            asked.add(signal.SIGTERM)
            _send(running, signal.SIGTERM)
        again_s = now - (forwarding.again_s or now)
        if alone_s > ALONE_S + GRACE_S or again_s > AGAIN_S:
            asked.add(signal.SIGKILL)
            _send(running, signal.SIGKILL)
        time.sleep(POLL_S)


def _read(messages: int) -> str:
    found = b""
    with contextlib.suppress(BlockingIOError):  # a process of its own may hold the other end
        while part := os.read(messages, 65536):
            found += part
    return found.decode("utf-8", "replace").rstrip("\n")


def _send(children: Sequence[Child], number: int) -> None:
    for child in children:
        child.process.send_signal(number)  # does nothing if it has ended


def _left_alone(child: Child, forwarding: _Forwarding) -> bool:
    """Whether the others may wait for it: it has failed, or a signal that came to it alone has stopped it."""
    return _failed(child) or (child.code == INTERRUPTED and child.ended_s is not None and not forwarding.received)


def _failed(child: Child) -> bool:
    return child.ended_s is not None and child.code not in (0, INTERRUPTED)


def _exit_code(children: Sequence[Child]) -> int:
    """That of the first failure."""
    found = _causes(children)
    return max(found[0].code, 1) if found else 0


def _tell(children: Sequence[Child], at_the_end: bool = False) -> None:
    """Print what the first process has not said, each message once."""
    said = {children[0].message} | {child.message for child in children if child.told}
    for child in _causes(children, at_the_end):
        text = _ended_by(child) if child.code < 0 else child.message
        if text and not child.told and text not in said:
            said.add(text)
            err(f"process {child.rank} of {len(children)}: {text}")
        child.told = True


def _causes(children: Sequence[Child], at_the_end: bool = True) -> list[Child]:
    """Those that failed, in the order of time, without those that only lost a process that failed before.

    at_the_end: if there is none, the first of those, or the first that was stopped and said so.
    """
    from zoo.training.failures import PEER_LOST

    ended = sorted((child for child in children if child.code != 0), key=lambda child: child.ended_s or 0.0)
    failed = list(filter(_failed, ended))
    causes = [child for child in failed if PEER_LOST not in child.message]
    if causes or not at_the_end:
        return causes
    return (failed or sorted(ended, key=lambda child: not child.message))[:1]


def _ended_by(child: Child) -> str:
    name = signal.Signals(-child.code).name
    why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"ended by {name}{why}; the same command continues from the last checkpoint"
