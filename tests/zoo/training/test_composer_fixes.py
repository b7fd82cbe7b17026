"""Each wrapper around Composer, alone; test_train.py sees them at work together."""

import pytest
from composer.core import engine as composer_engine
from composer.utils import checkpoint as composer_checkpoint

from zoo.training import composer_fixes
from zoo.training.interrupts import StopRequests
from zoo.training.processes import Hosts


def test_a_write_that_dies_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "ep0-ba1-rank0.pt"

    def dies(state, filename):
        with open(filename, "wb") as file:
            file.write(b"half")
        if state is None:
            raise OSError("disk full")

    monkeypatch.setattr(composer_checkpoint, "_write_checkpoint_file", dies)
    with composer_fixes.fixed():
        composer_checkpoint._write_checkpoint_file({}, str(path))
        path.write_bytes(b"good")
        with pytest.raises(OSError, match="disk full"):
            composer_checkpoint._write_checkpoint_file(None, str(path))
    assert path.read_bytes() == b"good"


def test_composer_is_as_it_was_afterwards():
    names = [
        (composer_checkpoint, "_write_checkpoint_file"),
        (composer_checkpoint, "_torch_load_with_validation"),
        (composer_engine, "_get_default_passes"),
    ]
    before = [getattr(module, name) for module, name in names]
    with composer_fixes.fixed():
        assert all(getattr(module, name) is not old for (module, name), old in zip(names, before, strict=True))
    assert [getattr(module, name) for module, name in names] == before


class Clock:
    """What StopOnSignal sees of a state."""

    def __init__(self, batch):
        self.timestamp, self.ended = type("T", (), {"batch": batch}), 0

    def stop_training(self):
        self.ended += 1


def test_a_signal_while_a_checkpoint_is_written_needs_no_further_batch():
    requests = StopRequests()
    stopper = composer_fixes.StopOnSignal(requests, saves=lambda batch: batch % 4 == 0, hosts=Hosts(1))
    for batch, received, ended in [(4, None, 0), (5, 15, 0), (8, 15, 1)]:
        requests.received, state = received, Clock(batch)
        stopper.batch_checkpoint(state, None)
        assert state.ended == ended
    assert stopper.stopped
    assert not stopper.cut_short


def test_a_validation_is_left_at_its_next_batch():
    requests = StopRequests()
    stopper = composer_fixes.StopOnSignal(requests, saves=lambda batch: False, hosts=Hosts(1))
    stopper.eval_batch_start(Clock(3), None)
    requests.received = 15
    for _ in range(2):
        with pytest.raises(composer_fixes.CutShort):
            stopper.eval_batch_start(Clock(3), None)
    assert stopper.cut_short


def test_checkpoints_removed_by_hand_are_not_missed(tmp_path, caplog):
    saver = composer_fixes.Saver.__new__(composer_fixes.Saver)  # Composer's own makes a temporary folder
    saver.num_checkpoints_to_keep = 2
    paths = [tmp_path / f"ep0-ba{batch}-rank0.pt" for batch in range(1, 6)]
    for path in paths:
        path.touch()
    saver.saved_checkpoints = list(map(str, paths))
    paths[0].unlink()
    paths[3].unlink()  # one of those to keep: the two before it stay
    saver._rotate_checkpoints()
    assert sorted(tmp_path.iterdir()) == [paths[2], paths[4]]
    paths[2].unlink()
    paths[2].mkdir()  # as one that cannot be removed
    saver.saved_checkpoints = list(map(str, [paths[2], paths[4], tmp_path]))
    saver._rotate_checkpoints()
    assert "ep0-ba3-rank0.pt: an old checkpoint that cannot be removed: Is a directory" in caplog.text
