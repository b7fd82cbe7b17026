"""The process of one run: what it writes down and leaves with, for each way that a training can end."""

import json

import pytest

from tests.zoo.study.conftest import TINY
from zoo.blocks.making import PartError
from zoo.errors import ZooError
from zoo.evaluation import package_data
from zoo.study import child
from zoo.training.interrupts import Interrupted


class NonFinite(ZooError):
    """As the engine's error."""


def diverged() -> ZooError:
    error = ZooError("runs/x: training failed: loss is nan in batch 3")
    error.__cause__ = NonFinite("loss is nan")
    return error


@pytest.mark.parametrize(
    ("raised", "code", "outcome"),
    [
        (None, 0, None),
        (diverged(), 1, {"state": "diverged", "why": "runs/x: training failed: loss is nan in batch 3"}),
        (ZooError("disk full"), 1, {"state": "failed", "why": "disk full"}),
        (ValueError("bug"), 1, {"state": "failed", "why": "ValueError: bug"}),
        (PartError("feed-forward 'mine': no"), 1, {"state": "failed", "why": "feed-forward 'mine': no"}),
        (Interrupted("stopped"), 130, None),
        (KeyboardInterrupt(), 130, None),
    ],
    ids=["done", "diverged", "failed", "bug", "part of another package", "stopped", "at once"],
)
def test_the_outcome_is_written_down(tmp_path, monkeypatch, raised, code, outcome):
    def train(recipe, run_dir):
        assert recipe.name == "tiny_full"
        if raised is not None:
            raise raised

    monkeypatch.setattr("zoo.training.train", train)
    file = tmp_path / "outcome.json"
    arguments = [str(TINY / "full.yaml"), "--run-dir", str(tmp_path / "run"), "--outcome", str(file)]
    assert child.main(arguments) == code
    assert (json.loads(file.read_text()) if file.exists() else None) == outcome


def test_missing_data_of_a_task_are_said_before_the_training(tmp_path, monkeypatch, capsys):
    """On a node of a cluster, which may lack what the machine of the study has."""
    monkeypatch.setattr(package_data, "installed", lambda: False)
    monkeypatch.setattr("zoo.training.train", lambda *a: pytest.fail("it trained"))
    arguments = [str(TINY / "full.yaml"), "--run-dir", str(tmp_path / "run"), "--outcome", str(tmp_path / "o.json")]
    assert child.main([*arguments, "--tasks", '["lambada"]']) == 1
    assert json.loads((tmp_path / "o.json").read_text())["why"].startswith("tasks: lambada: its data come with the")


def test_a_process_whose_study_has_ended_leaves_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_STUDY_PARENT", "1")
    monkeypatch.setattr(child, "end_with_parent", lambda number: None)
    monkeypatch.setattr("zoo.training.train", lambda *a: pytest.fail("it trained"))
    arguments = [str(TINY / "full.yaml"), "--run-dir", str(tmp_path / "run"), "--outcome", str(tmp_path / "o.json")]
    assert child.main(arguments) == 130
