"""`zoo train --devices N`: the processes it starts, how they end, and when it refuses."""

import errno
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

from zoo import processes
from zoo.errors import RecipeError, ZooError
from zoo.processes import LAUNCHED, MESSAGE_PIPE, STOP_SIGNALS
from zoo.runs.folder import RunFolder
from zoo.training import launching
from zoo.training.failures import PEER_LOST

main = importlib.import_module("zoo.cli.main")  # zoo.cli.main is the function


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
        head += f"def tell(text): os.write(int(os.environ[{MESSAGE_PIPE!r}]), text.encode())\n"
        head += f"def listen(): signal.pthread_sigmask(signal.SIG_UNBLOCK, {[int(n) for n in STOP_SIGNALS]})\n"
        monkeypatch.setattr(launching, "python_module", lambda *_: [sys.executable, "-c", head + script])
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
            "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "5", LAUNCHED: str(os.getpid())
        }  # fmt: skip
    assert "RANK" not in os.environ


_KEYS = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"]
_KEYS += ["OMP_NUM_THREADS", LAUNCHED]


def test_a_number_of_threads_that_is_set_stays(launch, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert launch("sys.exit(os.environ['OMP_NUM_THREADS'] != '7')") == 0


@pytest.mark.slow
def test_the_processes_join_one_group(launch):
    """Through the store of the launcher, whose port no other program can take."""
    script = "import torch; import torch.distributed as d; d.init_process_group('gloo'); x = torch.tensor([rank + 1.0])"
    end = "d.destroy_process_group()"  # else gloo's threads sometimes abort a process that ends
    assert launch(f"{script}\nd.all_reduce(x); {end}; sys.exit(0 if float(x) == 3 else 9)") == 0


def test_a_failure_that_all_share_is_told_by_the_first_alone(launch, capfd):
    assert launch("tell('no such file'); sys.exit(2)") == 2
    assert capfd.readouterr().err == ""  # the first process prints its message itself


def test_a_failure_of_another_is_told_with_its_number(launch, capfd, monkeypatch):
    monkeypatch.setattr(launching, "ALONE_S", 0.2)
    monkeypatch.setattr(launching, "GRACE_S", 0.5)
    script = "if rank == 1: tell('disk full'); sys.exit(3)\ntime.sleep(60)"
    assert launch(script) == 3
    assert capfd.readouterr().err == "process 1 of 2: disk full\n"


def test_a_process_that_a_signal_ended_is_named(launch, capfd, monkeypatch):
    monkeypatch.setattr(launching, "ALONE_S", 0.2)
    monkeypatch.setattr(launching, "GRACE_S", 0.5)
    assert launch("if rank == 2: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)", devices=3) == 1
    said = capfd.readouterr().err
    assert said.startswith(
        "process 2 of 3: ended by SIGKILL, as the system does when memory runs out; the same command"
    )
    assert said.count("\n") == 1


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

    thread = threading.Thread(target=_send_when, args=(tmp_path, 2, getattr(signal, name)))
    thread.start()
    script = f"""
def save(*_):
    time.sleep(0.3); tell('stopped; the same command continues'); os._exit(130)
signal.signal(signal.{name}, save)
listen()
open(f'ready{{rank}}', 'w').close()
time.sleep(60)
"""
    assert launch(script) == 130
    thread.join()
    assert capfd.readouterr().err == ""
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_lost_connection_is_not_told_if_the_failure_that_caused_it_is(launch, capfd):
    """Each process that fails because another did has a message with an address of its own."""
    script = f"""
if rank == 2: tell('disk full'); sys.exit(1)
time.sleep(0.5); tell(f'{PEER_LOST}: 127.0.0.1:{{rank}}'); sys.exit(1)
"""
    assert launch(script, devices=4) == 1
    assert capfd.readouterr().err == "process 2 of 4: disk full\n"


def test_one_that_a_signal_stopped_alone_does_not_keep_the_others_waiting(launch, capfd, monkeypatch):
    """A SIGTERM to one process while it imports: the others would wait for it to join them."""
    monkeypatch.setattr(launching, "ALONE_S", 0.2)
    monkeypatch.setattr(launching, "GRACE_S", 0.5)
    assert launch("if rank: tell('stopped'); sys.exit(130)\nlisten(); time.sleep(60)") == 130
    assert capfd.readouterr().err == "process 1 of 2: stopped\n"


def test_a_signal_that_comes_before_a_process_has_its_handlers_is_kept(launch, tmp_path):
    """Ctrl-C while Python starts would end it with a traceback, SIGTERM without a word."""
    thread = threading.Thread(target=_send_when, args=(tmp_path, 2, signal.SIGINT))
    thread.start()
    script = """
open(f'ready{rank}', 'w').close()
time.sleep(1)
signal.signal(signal.SIGINT, lambda *_: os._exit(130))
listen()
time.sleep(60)
"""
    assert launch(script) == 130
    thread.join()


def test_the_second_ctrl_c_ends_processes_that_do_not_hear_it(launch, monkeypatch, tmp_path):
    monkeypatch.setattr(launching, "AGAIN_S", 0.5)
    thread = threading.Thread(target=_send_when, args=(tmp_path, 2, signal.SIGINT, 2))
    thread.start()
    begun = time.monotonic()
    assert launch("open(f'ready{rank}', 'w').close(); time.sleep(60)") == 130
    assert time.monotonic() - begun < 40
    thread.join()


@pytest.mark.slow
def test_ctrl_z_suspends_the_processes_and_fg_continues_them(alone, tmp_path):
    """They are in sessions of their own, which the terminal's SIGTSTP does not reach."""
    head = "import os, sys, time\nos.chdir(sys.argv[1])\n"
    child = head + "open('ready' + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
    child += "while not os.path.exists('end'): time.sleep(0.05)"
    script = f"""
import sys
from zoo.training import launching
launching.python_module = lambda *_: [sys.executable, "-c", {child!r}, sys.argv[1]]
sys.exit(launching.launch(2, []))
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as launcher:
        _until(lambda: len([path for path in tmp_path.glob("ready*") if path.read_text()]) == 2)
        everyone = [launcher.pid, *(int(path.read_text()) for path in tmp_path.glob("ready*"))]
        launcher.send_signal(signal.SIGTSTP)
        _until(lambda: [_state(pid) for pid in everyone] == ["T"] * 3)
        launcher.send_signal(signal.SIGCONT)
        _until(lambda: "T" not in [_state(pid) for pid in everyone])
        (tmp_path / "end").touch()
        assert launcher.wait(60) == 0


def test_if_one_cannot_be_started_those_before_it_are_ended(launch, monkeypatch):
    started, popen = [], subprocess.Popen

    def start(*arguments, **options):
        if len(started) == 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(ZooError, match="process 2 of --devices was not started: the system allows no more processes"):
        launch("time.sleep(60)", devices=3)
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def test_no_temporary_folder_is_needed(launch, capfd, monkeypatch, tmp_path):
    """It may be full, and would stay there if the launcher were killed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert launch("if rank: tell('disk full'); sys.exit(3)") == 3
    assert capfd.readouterr().err == "process 1 of 2: disk full\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_is_told_by_one_of_the_processes(rank, monkeypatch, capfd):
    """The first prints its traceback, the others leave it to the launcher, which prints what the first has not said."""
    reads, writes = os.pipe()
    monkeypatch.setenv(MESSAGE_PIPE, str(writes))
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(main, "run", lambda: {}["missing"])
    for name in ("tolerate_encoding", "import_nothing_from_here", "without_pydantic_plugins", "watch_imports"):
        monkeypatch.setattr(main, name, lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(main, "_launcher", None)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 1
    assert MESSAGE_PIPE not in os.environ  # a process that this one starts has messages of its own
    sent = os.read(reads, 65536).decode()
    assert sent.endswith("KeyError: 'missing'\n")
    assert capfd.readouterr().err == (sent if rank == 0 else "")
    os.close(reads), os.close(writes)


def test_a_recipe_that_looks_like_an_option_reaches_the_processes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-r.yaml").write_text("extends: zoo:tiny/full\nname: r\n")
    given = []
    monkeypatch.setattr(launching, "launch", lambda devices, arguments: given.append(arguments) or 0)
    assert main.run(["train", "--devices", "2", "--run-dir=-d", "--set", "seed=2", "--", "-r.yaml"]) == 0
    assert given == [["train", "--set", "seed=2", "--run-dir=-d", "--", "-r.yaml"]]


def test_a_folder_that_another_run_holds_is_refused_before_processes_are_started(monkeypatch, tmp_path, capfd):
    """The first process would refuse it, and the others wait for it until they are killed."""
    (tmp_path / "r.yaml").write_text("extends: zoo:tiny/full\nname: r\n")
    monkeypatch.setattr(launching, "launch", lambda *_: pytest.fail("started"))
    with RunFolder(tmp_path / "run").locked():
        command = ["train", str(tmp_path / "r.yaml"), "--devices", "2", "--run-dir", str(tmp_path / "run")]
        assert main.run(command) == 1
    assert capfd.readouterr().err == f"{tmp_path / 'run'}: another process is training into this folder\n"


def test_a_launcher_that_is_gone_already_is_as_one_that_goes(monkeypatch):
    """Killed while its processes import; PR_SET_PDEATHSIG tells of later deaths only."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    sent = []
    monkeypatch.setattr(processes, "end_with_parent", lambda number: None)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setenv(LAUNCHED, str(os.getppid()))
    processes.end_with_launcher()
    assert sent == []
    monkeypatch.setenv(LAUNCHED, str(gone.pid))
    processes.end_with_launcher()
    assert sent == [(os.getpid(), signal.SIGTERM)]


def _send_when(folder, ready: int, number: int, times: int = 1) -> None:
    _until(lambda: len(list(folder.glob("ready*"))) == ready)
    for _ in range(times):
        os.kill(os.getpid(), number)
        time.sleep(0.5)


def _until(true) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


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
