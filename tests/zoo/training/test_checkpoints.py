"""Which checkpoint a run continues from, when files are missing, damaged or half written."""

import os
import zipfile

import pytest
import torch

from zoo.errors import ZooError
from zoo.training.checkpoints import damage, listed, newest_good


@pytest.fixture
def folder(tmp_path):
    """checkpoints/ of a run, saved after batches 10, 20 and 100."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for epoch, batch in [(0, 10), (0, 20), (1, 100)]:
        torch.save({"w": torch.arange(1000.0) + batch}, folder / f"ep{epoch}-ba{batch}-rank0.pt")
    return folder


def test_no_checkpoint_yet(tmp_path):
    assert newest_good(tmp_path / "checkpoints", print) is None
    (tmp_path / "checkpoints").mkdir()
    assert newest_good(tmp_path / "checkpoints", print) is None


def test_the_newest_by_batch_number_without_any_link(folder):
    os.symlink("nowhere.pt", folder / "latest-rank0.pt")  # dangling, as an earlier Composer run may leave it
    said = []
    assert [checkpoint.batch for checkpoint in listed(folder)] == [10, 20, 100]
    assert newest_good(folder, said.append).batch == 100
    assert said == []


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty"])
def test_a_damaged_checkpoint_is_renamed_and_named_and_the_one_before_it_is_used(folder, harm):
    path = folder / "ep1-ba100-rank0.pt"
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes({"truncate": content[: len(content) // 2], "flip": content, "empty": b""}[harm])
    said = []
    assert newest_good(folder, said.append).batch == 20
    assert not path.exists()
    assert path.with_name(path.name + ".bad").exists()
    assert len(said) == 1
    assert "checkpoint of batch 100 is damaged" in said[0]
    assert path.name in said[0]


def test_only_damaged_checkpoints_are_not_a_silent_restart(folder):
    for checkpoint in listed(folder):
        checkpoint.path.write_bytes(b"")
    for _ in range(2):  # and not at the second attempt either
        with pytest.raises(ZooError, match="every checkpoint is damaged"):
            newest_good(folder, lambda text: None)


def test_a_folder_that_cannot_be_read_is_not_a_silent_restart(folder, monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied", path)  # root, who runs tests too, may read every folder

    monkeypatch.setattr(os, "listdir", deny)
    with pytest.raises(ZooError, match="checkpoints: the folder cannot be read: Permission denied"):
        newest_good(folder, print)


def test_a_write_that_was_cut_short_is_removed(folder):
    left = folder / ".writing-ep1-ba120-rank0.pt"
    left.write_bytes(b"half")
    assert newest_good(folder, print).batch == 100
    assert not left.exists()


def test_every_byte_of_a_tensor_is_checked(folder):
    path = listed(folder)[0].path
    assert damage(path) is None
    content = path.read_bytes()
    start = content.index(torch.arange(1000.0).add(10).numpy().tobytes())
    for offset in (start, start + 3999):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 128]) + content[offset + 1 :])
        assert damage(path) is not None


def test_an_archive_that_unpacks_to_more_is_not_unpacked(tmp_path):
    path = tmp_path / "ep0-ba1-rank0.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 1_000_000)
    assert damage(path) == "it unpacks to more bytes than it has, which no checkpoint does"
