"""`zoo train --devices N`: the processes it starts, how they end, and when it refuses."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from zoo.errors import RecipeError
from zoo.processes import LAUNCHED, MESSAGE_FILE
from zoo.training import launching


@pytest.fixture
def alone(monkeypatch):
    """No launcher has started this process, and the signals of a test reach a handler of its own."""
    for name in (*launching.NAMES_OF_LAUNCHERS, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def launch(alone, monkeypatch, tmp_path):
    """Launch a script, whose working directory is tmp_path, in place of `python -m zoo`."""

    def run(script: str, devices: int = 2) -> int:
        head = f"import os, sys, time, signal\nrank = int(os.environ['RANK'])\nos.chdir({str(tmp_path)!r})\n"
        tell = f"def tell(text): open(os.environ[{MESSAGE_FILE!r}], 'w').write(text)\n"
        monkeypatch.setattr(launching, "python_module", lambda *_: [sys.executable, "-c", head + tell + script])
        return launching.launch(devices, [])

    return run


def test_each_process_knows_the_others_and_gets_its_share_of_the_cores(launch, monkeypatch, tmp_path):
    monkeypatch.setattr(launching, "cores", lambda: 16)
    assert launch(f"open(str(rank), 'w').write(repr({{k: os.environ[k] for k in {_KEYS!r}}}))", devices=3) == 0
    for rank in range(3):
        found = eval((tmp_path / str(rank)).read_text())
        assert int(found.pop("MASTER_PORT")) > 0
        expected = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3, "NODE_RANK": 0}
        assert found == {k: str(v) for k, v in expected.items()} | {
            "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "5", LAUNCHED: "1"
        }  # fmt: skip
    assert "RANK" not in os.environ


_KEYS = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"]
_KEYS += ["OMP_NUM_THREADS", LAUNCHED]


def test_a_number_of_threads_that_is_set_stays(launch, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert launch("sys.exit(os.environ['OMP_NUM_THREADS'] != '7')") == 0


def test_the_processes_join_one_group(launch):
    """Through the store of the launcher, whose port no other program can take."""
    script = "import torch; import torch.distributed as d; d.init_process_group('gloo'); x = torch.tensor([rank + 1.0])"
    assert launch(script + "\nd.all_reduce(x); sys.exit(0 if float(x) == 3 else 9)") == 0


def test_a_failure_that_all_share_is_told_by_the_first_alone(launch, capfd):
    assert launch("tell('no such file'); sys.exit(2)") == 2
    assert capfd.readouterr().err == ""  # the first process prints its message itself


def test_a_failure_of_another_is_told_with_its_number(launch, capfd, monkeypatch):
    monkeypatch.setattr(launching, "ALONE_S", 0.2)
    script = "if rank == 1: tell('disk full'); sys.exit(3)\ntime.sleep(60)"
    assert launch(script) == 3
    assert capfd.readouterr().err == "process 1 of 2: disk full\n"


def test_a_process_that_a_signal_ended_is_named(launch, capfd, monkeypatch):
    monkeypatch.setattr(launching, "ALONE_S", 0.2)
    assert launch("if rank == 2: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)", devices=3) == 1
    assert "process 2 of 3: ended by SIGKILL; the same command continues" in capfd.readouterr().err


def test_one_that_does_not_stop_after_another_failed_is_killed(launch, monkeypatch):
    """It may wait in an exchange for the process that has gone."""
    monkeypatch.setattr(launching, "ALONE_S", 0.2)
    monkeypatch.setattr(launching, "GRACE_S", 0.5)
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nif rank: time.sleep(0.5); sys.exit(4)\ntime.sleep(60)"
    begun = time.monotonic()
    assert launch(script) == 4
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_are_passed_on_and_a_stopped_training_is_no_failure(launch, capfd, name, tmp_path):
    """However long the processes take to save; the handlers that were there come back."""
    before = signal.getsignal(getattr(signal, name))

    def send():
        while sum(path.name.startswith("ready") for path in tmp_path.iterdir()) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), getattr(signal, name))

    thread = threading.Thread(target=send)
    thread.start()
    script = f"""
def save(*_):
    time.sleep(0.3); tell('stopped; the same command continues'); os._exit(130)
signal.signal(signal.{name}, save)
open(f'ready{{rank}}', 'w').close()
time.sleep(60)
"""
    assert launch(script) == 130
    thread.join()
    assert capfd.readouterr().err == ""
    assert signal.getsignal(getattr(signal, name)) == before


def test_more_devices_than_gpus_are_refused(launch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RecipeError, match="this machine has only 2; found 3"):
        launch("sys.exit(9)", devices=3)


def test_a_process_of_a_launcher_starts_no_other(launch, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="a launcher has started this process already"):
        launch("sys.exit(9)")


@pytest.mark.slow
def test_a_wrong_recipe_of_data_is_one_line(recipe_file, tmp_path, environment):
    """The command as a user gives it: no line of a launcher around the message."""
    command = [
        sys.executable,
        "-m",
        "zoo",
        "train",
        str(recipe_file),
        "--devices",
        "2",
        "--run-dir",
        str(tmp_path / "r"),
    ]
    sets = ["--set", "data.source={kind: text, paths: [nowhere]}"]
    done = subprocess.run([*command, *sets], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "nowhere: no such file or folder" in done.stderr
