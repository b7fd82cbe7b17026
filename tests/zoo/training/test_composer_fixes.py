"""Each wrapper around Composer, alone; test_train.py sees them at work together."""

import os
import zipfile

import pytest
import torch
from composer.utils import checkpoint as composer_checkpoint

from zoo.errors import ZooError
from zoo.training import composer_fixes
from zoo.training.interrupts import StopRequests


class Evil:
    """Pickles as a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, zipped):
    path, proof = tmp_path / "ep0-ba1-rank0.pt", tmp_path / "proof"
    torch.save({"state": Evil(f"touch {proof}")}, path, _use_new_zipfile_serialization=zipped)
    with composer_fixes.fixed(), pytest.raises(ZooError, match=r"ep0-ba1-rank0\.pt: refused, because"):
        composer_checkpoint._torch_load_with_validation(path, "cpu")
    assert not proof.exists()


def test_what_composer_saves_is_read(tmp_path):
    from composer.utils.reproducibility import get_rng_state

    path = tmp_path / "checkpoint.pt"
    torch.save({"rng": get_rng_state(), "state": {"w": torch.ones(2), "version": torch.__version__}}, path)
    assert composer_fixes.read_safely(path)["state"]["w"].tolist() == [1, 1]


def save_weights(path, weights: dict) -> None:
    """A checkpoint as Composer writes it, as far as it is looked at."""
    model = {f"summed_loss.decoder.{name}": value for name, value in weights.items()}
    torch.save({"rng": [], "state": {"model": model, "optimizers": {}, "timestamp": {}}}, path)


def test_a_checkpoint_of_other_weights_is_one_clear_error(tmp_path):
    path = tmp_path / "run" / "checkpoints" / "ep0-ba1-rank0.pt"
    path.parent.mkdir(parents=True)
    right = {name: torch.ones(2) for name in ("output", "query")}
    save_weights(path, right)
    composer_fixes.refuse_other_weights(path, right)
    said = (
        r"ba1-rank0\.pt: not the weights of this version's model: input is missing \(and 1 more\)\. .*remove .*run to"
    )
    with pytest.raises(ZooError, match=said):
        composer_fixes.refuse_other_weights(path, {"input": torch.ones(2), "output": torch.ones(2)})
    with pytest.raises(ZooError, match=r"output must be \[3\]; found \[2\]\. Continue"):
        composer_fixes.refuse_other_weights(path, right | {"output": torch.ones(3)})
    save_weights(path, right | {"output": 7})
    with pytest.raises(ZooError, match=r"output must be \[2\]; found int"):
        composer_fixes.refuse_other_weights(path, right)


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.ones(3), {"state": {}}, {"rng": [], "state": {"model": 3}}, {"state": {"model": {}}}],
    ids=str,
)
def test_a_file_of_torch_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "ep0-ba1-rank0.pt"
    torch.save(content, path)
    with pytest.raises(ZooError, match=r"ba1-rank0\.pt: not the checkpoint of a training: it must have rng"):
        composer_fixes.refuse_other_weights(path, {"output": torch.ones(2)})


def test_a_zip_archive_of_something_else(tmp_path):
    path = tmp_path / "ep0-ba1-rank0.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(ZooError, match=r"ba1-rank0\.pt: refused, because a checkpoint holds tensors"):
        composer_fixes.refuse_code(path)


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
    before = composer_checkpoint._write_checkpoint_file, composer_checkpoint._torch_load_with_validation
    with composer_fixes.fixed():
        assert composer_checkpoint._write_checkpoint_file is not before[0]
        assert composer_checkpoint._torch_load_with_validation is not before[1]
    assert before == (composer_checkpoint._write_checkpoint_file, composer_checkpoint._torch_load_with_validation)


class Clock:
    """What StopOnSignal sees of a state."""

    def __init__(self, batch):
        self.timestamp, self.ended = type("T", (), {"batch": batch}), 0

    def stop_training(self):
        self.ended += 1


def test_a_signal_while_a_checkpoint_is_written_needs_no_further_batch():
    requests = StopRequests()
    stopper = composer_fixes.StopOnSignal(requests, saves=lambda batch: batch % 4 == 0)
    for batch, received, ended in [(4, None, 0), (5, 15, 0), (8, 15, 1)]:
        requests.received, state = received, Clock(batch)
        stopper.batch_checkpoint(state, None)
        assert state.ended == ended
    assert stopper.stopped
    assert not stopper.cut_short


def test_a_validation_is_left_at_its_next_batch():
    requests = StopRequests()
    stopper = composer_fixes.StopOnSignal(requests, saves=lambda batch: False)
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
