"""A run that hangs ends, and says where it hung."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zoo.runs.metrics import read_metrics
from zoo.training import watchdog
from zoo.training.watchdog import Watchdog

HANGS = """
import sys, time
from pathlib import Path
from zoo.training.watchdog import Watchdog

def waits_for_ever():
    time.sleep(600)

with Watchdog(0.005, Path(sys.argv[1]), "rank 3, process 7", lambda: "the same command continues") as dog:
    for n in range(10):
        time.sleep(0.1)
        dog.beat(f"batch {n}")
    waits_for_ever()
"""


def test_a_hang_writes_the_stacks_and_ends_in_one_line(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("what was said before\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HANGS, str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line == (
        f"no progress for 0.005 min (train.stall_minutes) after batch 9; the stacks of all processes are in {log}; "
        "the same command continues"
    )
    written = log.read_text()
    assert written.startswith("what was said before\n--- rank 3, process 7: no progress")
    assert "in waits_for_ever" in written


@pytest.mark.parametrize("minutes", [0, 1])
def test_no_watchdog_bites_after_its_with(minutes, tmp_path):
    with Watchdog(minutes, tmp_path / "log", "", str):
        pass
    assert all(not thread.is_alive() for thread in threading.enumerate() if thread.name == "watchdog") or minutes


def test_time_in_which_the_process_was_stopped_does_not_count(tmp_path, monkeypatch):
    """Ctrl-Z, a suspended job: the clock has moved on by hours when the process goes on."""
    bitten, looks = [], iter([0.0, 1.0, 10_000.0, 10_001.0, 10_002.0])
    dog = Watchdog(1.0, tmp_path / "log", "", str)
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: next(looks))
    monkeypatch.setattr(dog, "_end", lambda: bitten.append(1))
    monkeypatch.setattr(dog._over, "wait", lambda tick: next(over))
    over = iter([False, False, False, False, True])
    dog._watch()
    assert bitten == []
    assert dog._idle_s == pytest.approx(1 + 2 + 1 + 1)


@pytest.mark.slow
def test_a_reader_that_is_stopped_ends_the_run_with_all_stacks(recipe_file, tmp_path, environment):
    """The process that reads rows hangs; the same command continues afterwards."""
    run = tmp_path / "run"
    sets = ["train.duration=5000ba", "train.workers=1", "train.stall_minutes=0.5", "train.checkpoint.every=20ba"]
    command = [sys.executable, "-m", "zoo", "train", str(recipe_file), "--run-dir", str(run)]
    command += [part for each in [*sets, "eval.every=1dur"] for part in ("--set", each)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while max((r["batch"] for r in read_metrics(run / "metrics.jsonl")), default=0) < 25:
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.05)
        (reader,) = _readers(process.pid)
        os.kill(reader, signal.SIGSTOP)
        said = process.communicate(timeout=200)[0].decode()
    assert process.returncode == 1
    assert "no progress for 0.5 min" in said.splitlines()[-1]
    assert "checkpoint of batch 20 saved" in said.splitlines()[-1]
    assert "Traceback" not in said
    log = (run / "log.txt").read_text()
    assert "--- rank 0, process" in log
    assert "in _try_get_data" in log


def _readers(parent):
    """Children that run the same command, in place of the keeper of shared memory."""
    found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True, check=True).stdout.split()
    named = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in found}
    return [pid for pid, command in named.items() if "train" in command.split("\0")]
