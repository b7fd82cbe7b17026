"""Processes of runs on a CPU, forked from one process that has imported the engine: its import takes seconds of a core.

    python -m zoo.study.preload MODULE        reads a JSON object a line from its input, and writes one a line

It reads {"start": ID, "arguments": [...], "log": FILE, "environment": {...}} and {"signal": NUMBER, "to": ID}, and
writes {"ready": true} after the imports and {"ended": ID, "code": N} after each run.  If the imports fail it writes
{"failed": MESSAGE} instead and ends, else it ends with its input.

Not used for GPUs: a process that has touched CUDA cannot fork.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from zoo.child import python_module
from zoo.files import open_to_append
from zoo.processes import end_with_parent

PARENT = "ZOO_STUDY_PARENT"  # the process with which a run's process ends
STOPPED = 130  # exit code of a run that was stopped, saved and ended
FAILED = 1
LOOK_S = 0.1


class Preloaded:
    """Starts processes as `subprocess.Popen` does; those of `module` are forked where the system can.

    module: the module whose `preload()` the one process runs, and whose `main(arguments)` a forked one does; any other
    command is started as it is.
    """

    def __init__(self, environment: Mapping[str, str], module: str = "zoo.study.child"):
        self._environment, self._module, self._prefix = dict(environment), module, python_module(module, [])
        self._server: subprocess.Popen | None = None
        self._ready, self._rest = False, b""
        self._failed: str | None = None  # why the imports of the server failed
        self._forked: dict[str, Forked] = {}

    def start(
        self, id: str, command: list[str], log: Path, environment: Mapping[str, str]
    ) -> "subprocess.Popen | Forked":
        """Start a command, whose output is appended to `log`."""
        size = len(self._prefix)
        if command[:size] != self._prefix or sys.platform != "linux":
            return start_process(command, log, environment)
        if self._server is None or self._failed or self._server.poll() is not None:
            self.close()
            self._serve(log.with_name("preload.txt"))
        changed = {name: value for name, value in environment.items() if os.environ.get(name) != value}
        self._forked[id] = Forked(self, id, log)
        self._tell({"start": id, "arguments": command[size:], "log": str(log.absolute()), "environment": changed})
        return self._forked[id]

    def _serve(self, log: Path) -> None:
        self._ready, self._failed, self._rest = False, None, b""
        with open_to_append(log) as file:
            server = self._server = subprocess.Popen(
                python_module("zoo.study.preload", [self._module]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        assert server.stdin is not None
        assert server.stdout is not None
        self._input, self._output = server.stdin, server.stdout
        os.set_blocking(self._output.fileno(), False)

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended; `look` says so of its runs
            self._input.write(json.dumps(message).encode() + b"\n")
            self._input.flush()

    def send(self, id: str, number: int) -> None:
        """Send a signal to a forked process; before the import is over there is none, and the import ends."""
        self.look()
        if self._ready:
            self._tell({"signal": int(number), "to": id})
        elif self._server is not None:
            self._server.kill()

    def look(self) -> None:
        """Note the runs that ended.

        Those of a server that was killed were stopped with it, by SIGTERM; if its imports failed, each of them failed.
        """
        if self._server is None:
            return
        ended = self._server.poll() is not None
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._output.fileno(), 1 << 16):
                self._rest += part
        *lines, self._rest = self._rest.split(b"\n")
        for message in map(json.loads, lines):
            self._ready = self._ready or "ready" in message
            self._failed = message.get("failed", self._failed)
            if "ended" in message:
                self._forked.pop(message["ended"]).code = message["code"]
        if self._failed:  # the server may still be ending
            for forked in self._forked.values():
                with open_to_append(forked.log) as file:
                    file.write(f"{self._failed}\n".encode())
        if self._failed or ended:
            for forked in self._forked.values():
                forked.code = FAILED if self._failed else STOPPED
            self._forked.clear()

    def close(self) -> None:
        """End the server, and with it what it runs."""
        if self._server is not None:
            with contextlib.suppress(BrokenPipeError):
                self._input.close()
            self._server.wait()
            self.look()
            self._output.close()
            self._server = None


class Forked:
    """A process that `Preloaded` forked, with the part of Popen's interface that slots use."""

    def __init__(self, by: Preloaded, id: str, log: Path):
        self._by, self._id, self.log = by, id, log
        self.code: int | None = None

    def poll(self) -> int | None:
        """The exit code, of a signal the negative number; None as long as it runs."""
        if self.code is None:
            self._by.look()
        return self.code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.code is None:
            self._by.send(self._id, number)


def start_process(
    command: Sequence[str], log: Path, environment: Mapping[str, str], folder: str | None = None
) -> subprocess.Popen:
    """Start a command in a session of its own, whose output is appended to `log`.

    folder: its working directory, by default that of this process.
    """
    environment = {**environment, PARENT: str(os.getpid())}
    with open_to_append(log) as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )


def main() -> int:
    """Serve, or, in a forked process, be the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(signal.SIGTERM)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no reply
    try:
        module = import_module(sys.argv[1])
        module.preload()
    except Exception as error:
        traceback.print_exc()
        _reply(replies, {"failed": f"{type(error).__name__}: {error}"})
        return FAILED
    for stream in (sys.stdout, sys.stderr):  # else each forked process would write it too, into the log of its run
        stream.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a library has set a handler of its own
    _reply(replies, {"ready": True})
    found = _serve(replies)
    if found is None:
        return 0
    replies.close()
    _become(found)
    return module.main(found["arguments"])


def _serve(replies) -> dict[str, Any] | None:
    """Fork a process for each request.  Returns None at the end of the input, and the request in a forked process."""
    running: dict[int, str] = {}
    rest = b""
    while True:
        for pid, id in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del running[pid]
                _reply(replies, {"ended": id, "code": os.waitstatus_to_exitcode(status)})
        if not select.select([0], [], [], LOOK_S)[0]:
            continue
        part = os.read(0, 1 << 16)
        if not part:
            return None
        *lines, rest = (rest + part).split(b"\n")
        for message in map(json.loads, lines):
            if "start" in message:
                pid = os.fork()
                if pid == 0:
                    return message
                running[pid] = message["start"]
            for pid in [pid for pid, id in running.items() if id == message.get("to")]:
                os.kill(pid, message["signal"])


def _become(request: dict[str, Any]) -> None:
    """What Popen does in a new process: its session, its output, its environment."""
    server = os.getppid()
    end_with_parent(signal.SIGTERM)
    if os.getppid() != server or server == 1:  # it was killed before the line above
        os._exit(STOPPED)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(request["environment"])
    file = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (file, 1), (file, 2)):
        os.dup2(source, target)


def _reply(replies, message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the study has ended
        print(json.dumps(message), file=replies, flush=True)


if __name__ == "__main__":
    sys.exit(main())
