"""Processes that are forked from one that has imported the engine behave as started ones do."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from zoo.child import python_module
from zoo.study.preload import Preloaded

ROOT = Path(__file__).parents[3]


def wait(process) -> int:
    end = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    return process.poll()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_forked_processes_end_as_started_ones_do(tmp_path):
    """Their exit code, their log, a signal, and the end of the process that forks them."""
    (tmp_path / "forked.py").write_text(
        "import os, sys, time\n"
        "def preload():\n"
        "    print('imported')\n"
        "def main(arguments):\n"
        "    print('begins', *arguments, os.environ['NEW'], flush=True)\n"
        "    time.sleep(float(arguments[1]))\n"
        "    return int(arguments[0])\n"
    )
    environment = {**os.environ, "NEW": "7", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    environment["PYTHONUNBUFFERED"] = ""  # as most users have it: output that is held back at the fork is doubled
    preloaded = Preloaded(environment, module="forked")
    command = python_module("forked", [])

    log = tmp_path / "log.txt"
    first = preloaded.start("a", [*command, "3", "0"], log, environment)
    assert wait(first) == 3
    assert log.read_text() == "begins 3 0 7\n"
    second = preloaded.start("b", [*command, "0", "100"], log, environment)
    while log.read_text().count("begins") < 2:
        time.sleep(0.05)
    second.send_signal(signal.SIGTERM)
    assert wait(second) == -signal.SIGTERM
    third = preloaded.start("c", [*command, "0", "100"], log, environment)
    while log.read_text().count("begins") < 3:
        time.sleep(0.05)
    os.kill(preloaded._server.pid, signal.SIGKILL)
    assert wait(third) == 130
    fourth = preloaded.start("d", [*command, "0", "0"], log, environment)
    assert wait(fourth) == 0
    preloaded.close()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_imports_that_fail_are_told_in_the_log_of_each_run(tmp_path):
    """Else each run would count as stopped, and be started again and again."""
    (tmp_path / "broken.py").write_text("def preload():\n    import a_package_that_is_not_there\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    preloaded = Preloaded(environment, module="broken")
    logs = [tmp_path / "a.txt", tmp_path / "b.txt"]
    runs = [preloaded.start(log.stem, python_module("broken", []), log, environment) for log in logs]
    assert [wait(run) for run in runs] == [1, 1]
    assert {log.read_text() for log in logs} == {"ModuleNotFoundError: No module named 'a_package_that_is_not_there'\n"}
    preloaded.close()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_a_run_that_starts_while_failed_imports_end_fails_too(tmp_path):
    """The process that failed to import takes a while to end, and reads no further request."""
    code = "import atexit, time\natexit.register(time.sleep, 1)\ndef preload():\n    raise ImportError('no')\n"
    (tmp_path / "slow.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    preloaded = Preloaded(environment, module="slow")
    for name in ("first", "second"):  # the second at once after the first has failed
        run = preloaded.start(name, python_module("slow", []), tmp_path / f"{name}.txt", environment)
        assert wait(run) == 1
        assert (tmp_path / f"{name}.txt").read_text() == "ImportError: no\n"
    preloaded.close()
