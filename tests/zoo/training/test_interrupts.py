"""Ctrl-C before the engine is there to catch it."""

import os
import signal

import pytest

from zoo.training.run import _whole_imports


@pytest.fixture(autouse=True)
def pythons_own_handler():
    """What a command starts with; other tests of this process may have left another."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def import_with_ctrl_c(times=1):
    """An import during which the user presses Ctrl-C; returns what was imported."""
    done = []
    try:
        with _whole_imports():
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                done.append("a module")
    except KeyboardInterrupt:
        return done
    return "no interrupt"


def test_ctrl_c_waits_for_the_end_of_an_import(capfd):
    assert import_with_ctrl_c() == ["a module"]
    assert "SIGINT: stops when the engine is imported" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait():
    assert import_with_ctrl_c(times=3) == ["a module"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_caller_is_left_alone():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert import_with_ctrl_c() == "no interrupt"
    finally:
        signal.signal(signal.SIGINT, before)
