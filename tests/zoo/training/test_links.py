"""Symbolic links in a run folder, which may be somebody else's: nothing outside of it changes."""

import os

import pytest

from zoo.errors import ZooError
from zoo.runs.folder import RunFolder
from zoo.training.loggers import JsonLines
from zoo.training.screen import log_to, stop_log


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "wandb"])
def test_folders_inside_a_run_folder_may_be_no_links(folder, tmp_path, name):
    (tmp_path / "outside").mkdir()
    (folder.path / name).symlink_to(tmp_path / "outside")
    with (
        pytest.raises(ZooError, match=rf"run/{name}: a symbolic link to .*: put a folder in its place"),
        folder.locked(),
    ):
        pass
    assert not any((tmp_path / "outside").iterdir())


def test_the_run_folder_itself_may_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder.path)
    with RunFolder(tmp_path / "link").locked():
        assert folder.checkpoints.is_dir()


def test_the_lock_may_be_no_link(folder, victim):
    (folder.path / ".lock").symlink_to(victim)
    with pytest.raises(ZooError, match=r"\.lock: a symbolic link"), folder.locked():
        pass


def test_a_lock_that_is_a_fifo_does_not_hang(folder):
    os.mkfifo(folder.path / ".lock")
    with pytest.raises(ZooError, match=r"\.lock: must be a file; found a FIFO"), folder.locked():
        pass


def test_the_log_may_be_no_link(folder, victim):
    folder.log.symlink_to(victim)
    with pytest.raises(ZooError, match=r"log\.txt: a symbolic link"):
        stop_log(log_to(folder.log))


def test_metrics_that_are_a_link_are_replaced(folder, victim):
    folder.metrics.symlink_to(victim)
    writer = JsonLines(folder.metrics, 0)
    writer({"batch": 1})
    writer.close()
    assert not folder.metrics.is_symlink()
    assert folder.metrics.read_text() == '{"batch": 1}\n'


def test_a_summary_that_is_a_link_is_replaced(folder, victim):
    folder.summary.symlink_to(victim)
    folder.write_summary({"name": "x"})
    assert not folder.summary.is_symlink()


def test_a_run_folder_that_is_a_link_to_other_files_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.jsonl").write_text("precious")
    (tmp_path / "run").symlink_to(tmp_path / "mine")
    with pytest.raises(ZooError, match="holds files and no run"), RunFolder(tmp_path / "run").locked():
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["metrics.jsonl"]
