"""Processes that measure: they end with the command that started them, and a failure has its reason."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zoo.bench import evaluation, processes, train

PATIENCE_S = 300
WAITS = """
import os, sys, time
from zoo.bench import processes
processes.end_with_the_command()
os.write(1, b'{"task": "x", "seconds": 1.0}\\n')
time.sleep(600)
"""
STARTS = """
import sys
from zoo.bench import evaluation, processes
processes.command = lambda module, arguments: [sys.executable, "-c", sys.argv[1]]
for line in evaluation._lines(["zoo"], lambda text: None):
    print(line["task"], flush=True)
"""
WARNS = "import os, signal, sys; print('a warning', file=sys.stderr, flush=True)"


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(what) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_when_the_command_ends(number):
    """The signal goes to the command alone, as from `kill` and from a supervisor."""
    command = [sys.executable, "-c", STARTS, WAITS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as started:
        assert started.stdout is not None
        started.stdout.readline()
        (child,) = children(started.pid)
        os.kill(started.pid, number)
        assert started.wait(PATIENCE_S) != 0
        wait_for(lambda: gone(child))


def test_lines_that_nobody_reads_any_more_end_the_process(monkeypatch):
    monkeypatch.setattr(processes, "command", lambda module, arguments: [sys.executable, "-c", WAITS])
    lines = evaluation._lines(["zoo"], lambda text: None)
    assert next(lines)["task"] == "x"
    before = time.monotonic()
    lines.close()
    assert time.monotonic() - before < PATIENCE_S


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (f"{WARNS}; sys.exit('no such run')", "no such run"),
        ("import sys; sys.exit(3)", "the process ended with exit code 3"),
        (f"{WARNS}; os.kill(os.getpid(), signal.SIGKILL)", "the process was killed by SIGKILL"),
    ],
)
def test_a_process_that_fails_has_a_reason(script, reason, monkeypatch):
    monkeypatch.setattr(processes, "command", lambda module, arguments: [sys.executable, "-c", script])
    assert list(evaluation._lines(["zoo"], pytest.fail)) == [{"error": reason}]
    assert train._in_a_process("x", [], 1, False, None, lambda text: None) == {"error": reason}
