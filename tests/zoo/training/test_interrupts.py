"""Signals that reach a run before, while and after it trains; test_train.py sees them stop one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from zoo.processes import STOP_SIGNALS
from zoo.training import interrupts
from zoo.training.interrupts import StopRequests


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture
def no_grace(monkeypatch):
    """A second Ctrl-C counts however soon it comes."""
    monkeypatch.setattr(interrupts, "AGAIN_AFTER_S", 0.0)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_noted_and_said_and_the_handlers_come_back(capfd, number):
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    with StopRequests() as requests:
        requests.enter("stops after this batch and saves")
        send(number)
        assert requests.received == number
    said = f"{signal.Signals(number).name}: stops after this batch and saves (Ctrl-C again: at once)"
    assert said in capfd.readouterr().err
    assert before == {each: signal.getsignal(each) for each in STOP_SIGNALS}


def test_the_same_signal_by_two_ways_and_any_sigterm_is_one_request(capfd):
    with StopRequests() as requests:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            send(number)
    assert requests.received == signal.SIGINT
    assert capfd.readouterr().err.count("stops") == 1


@pytest.mark.usefixtures("no_grace")
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_again_ends_at_once(first):
    with StopRequests(quiet=True):
        send(first)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_phase_that_ends_at_once(capfd):
    with StopRequests() as requests:
        requests.enter("ends; pieces are kept", at_once=True)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):  # a library that swallowed it cannot make the run go on
            requests.check()
    assert "SIGTERM: ends; pieces are kept\n" in capfd.readouterr().err


def test_a_signal_of_the_phase_before_ends_one_that_ends_at_once():
    with StopRequests(quiet=True) as requests:
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            requests.enter("ends", at_once=True)


def test_handlers_that_an_import_sets_are_replaced():
    with StopRequests(quiet=True) as requests:
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("of the import"))
        requests.listen()
        send(signal.SIGTERM)
    assert requests.received == signal.SIGTERM


def test_nohup_keeps_its_effect():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequests() as requests:
            send(signal.SIGHUP)
            assert requests.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


CHILD = """
import multiprocessing, os, sys, time
from zoo.processes import sheltered, stay_with_parent

def child(pipe):
    stay_with_parent()
    pipe.send(os.getpid())
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    ours, theirs = context.Pipe()
    with sheltered():
        process = context.Process(target=child, args=(theirs,), daemon=True)
        process.start()
    print(ours.recv(), flush=True)
    for line in sys.stdin:
        process.terminate()
        process.join(10)
        print(process.exitcode, flush=True)
"""


@pytest.fixture(params=["fork", "spawn"])
def family(request, tmp_path):
    """A process with a sheltered child, as training has; (process, pid of the child)."""
    script = tmp_path / "parent.py"
    script.write_text(CHILD)
    with subprocess.Popen(
        [sys.executable, str(script), request.param],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        yield parent, int(parent.stdout.readline())
        parent.kill()


def lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone_within(pid, seconds):
    end = time.monotonic() + seconds
    while lives(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not lives(pid)


def test_a_helper_outlives_signals_to_the_group_and_obeys_its_parent(family):
    parent, child = family
    for number in STOP_SIGNALS:
        os.kill(child, number)
    os.kill(child, signal.SIGTERM)
    time.sleep(0.3)
    assert lives(child)
    parent.stdin.write("terminate\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "0\n"


def test_a_helper_dies_with_its_parent(family):
    parent, child = family
    parent.kill()
    parent.wait(10)
    assert gone_within(child, 10)
