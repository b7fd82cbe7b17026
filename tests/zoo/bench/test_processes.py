"""Processes that measure: they end with the command that started them, and a failure has its reason."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zoo.bench import evaluation, evaluation_step, processes, train, train_step

PATIENCE_S = 300
WAITS = """
import os, sys, time
from zoo.bench import processes
processes.end_with_the_command()
os.write(1, b'{"task": "%d", "seconds": 1.0}\\n' % os.getpid())
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
        try:
            child = int(started.stdout.readline())
            os.kill(started.pid, number)
            assert started.wait(PATIENCE_S) != 0
            wait_for(lambda: gone(child))
        finally:
            started.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_lines_that_nobody_reads_any_more_end_the_process(monkeypatch):
    monkeypatch.setattr(processes, "command", lambda module, arguments: [sys.executable, "-c", WAITS])
    lines = evaluation._lines(["zoo"], lambda text: None)
    child = int(next(lines)["task"])
    lines.close()
    wait_for(lambda: gone(child))


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


def test_plugins_of_the_command_are_imported_by_the_process(monkeypatch):
    """Else a run with blocks of a plugin, or a task of one, could be scored and not timed."""
    shows = "import sys; sys.exit(' '.join(sys.argv[1:]))"
    monkeypatch.setattr(processes, "command", lambda module, arguments: [sys.executable, "-c", shows, *arguments])
    monkeypatch.setattr("zoo.blocks.plugins.named_plugins", lambda: ["mine", "theirs"])
    assert list(evaluation._lines(["zoo", "run"], pytest.fail)) == [{"error": "zoo run --plugin mine --plugin theirs"}]
    said = train._in_a_process("recipe.yaml", [], 1, False, None, lambda text: None)
    assert said["error"].startswith("recipe.yaml --steps 1 ")
    assert said["error"].endswith(" --plugin mine --plugin theirs")
    monkeypatch.setattr(evaluation_step, "end_with_the_command", lambda: None)  # of this process
    monkeypatch.setattr(sys, "argv", ["evaluation_step", "zoo", "run", "folder", "--plugin", "nowhere"])
    with pytest.raises(ValueError, match="plugin 'nowhere' cannot be imported"):
        evaluation_step.main()
    monkeypatch.setattr(train_step, "end_with_the_command", lambda: None)
    monkeypatch.setattr(sys, "argv", ["train_step", "recipe.yaml", "--plugin", "nowhere"])
    with pytest.raises(ValueError, match="plugin 'nowhere' cannot be imported"):
        train_step.main()


TRACEBACK = """Traceback (most recent call last):
  File "first.py", line 1, in <module>
ValueError: first

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "step.py", line 7, in <module>
    raise RuntimeError(
    ^^^^^^^^^^^^^^^^^^^
RuntimeError: the operation has no such form
  Explanation: of a kind that spans lines

Set VERBOSE=1 for more.
"""
IGNORED = """Exception ignored in: <function Graph.__del__ at 0x7f>
Traceback (most recent call last):
  File "graph.py", line 3, in __del__
TypeError: 'NoneType' object is not callable
"""


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (0, "a warning", None),
        (1, TRACEBACK, "RuntimeError: the operation has no such form"),
        (1, f"a warning\n{TRACEBACK}", "RuntimeError: the operation has no such form"),
        (1, TRACEBACK + IGNORED, "RuntimeError: the operation has no such form"),
        (2, f"{TRACEBACK}a.yaml: unknown key\n", "a.yaml: unknown key"),  # a traceback that was logged
        (1, "KeyError: 'a'\n  no room \n\n", "no room"),
        (1, "Traceback (most recent call last):\n  File", "File"),
        (3, "", "the process ended with exit code 3"),
        (-9, TRACEBACK, "the process was killed by SIGKILL"),
    ],
)
def test_why_a_process_failed(code, said, why):
    assert processes.why_failed(code, said) == why
