"""`zoo train --devices N`: what it becomes, and when it refuses."""

import os
import sys

import pytest
import torch

from zoo.errors import RecipeError
from zoo.training import processes


@pytest.fixture
def became(monkeypatch):
    """What the process would have become: the arguments of os.execv."""
    found = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: found.append(arguments))
    for name in (*processes.NAMES_OF_LAUNCHERS, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_it_becomes_torchrun_with_a_share_of_the_cores(became, monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: 16)
    processes.launch(4, ["train", "a.yaml", "--set", "seed=3"])
    assert became[0][0] == sys.executable
    assert became[0][-8:] == ["--nproc-per-node", "4", "-m", "zoo", "train", "a.yaml", "--set", "seed=3"]
    assert os.environ.pop("OMP_NUM_THREADS") == "4"


def test_a_number_of_threads_that_is_set_stays(became, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    processes.launch(2, ["train", "a.yaml"])
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_more_devices_than_gpus_are_refused(became, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RecipeError, match="this machine has only 2; found 3"):
        processes.launch(3, ["train", "a.yaml"])
    assert not became


def test_a_process_of_a_launcher_starts_no_other(became, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="a launcher has started this process already"):
        processes.launch(2, ["train", "a.yaml"])
    assert not became
