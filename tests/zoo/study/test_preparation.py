"""What a study prepares, and refuses, before the first run is trained."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.zoo.study.conftest import TINY
from tests.zoo.study.test_runner import alive
from zoo import load_recipe
from zoo.blocks.making import PartError
from zoo.data.identity import DataRecord
from zoo.data.show import prepare_for
from zoo.study.config import StudyError
from zoo.study.preparation import main, read_failure, read_rows


@pytest.fixture
def recipe(tmp_path):
    """The tiny recipe over a small text of its own."""
    (tmp_path / "text.txt").write_text("the window of a token is a block of tokens\n" * 300)
    path = tmp_path / "recipe.yaml"
    source = f"{{kind: text, paths: [{tmp_path}/text.txt], separator: ' '}}"
    data = f"data:\n  source: {source}\n  validation_fraction: 0.3\n  cache_dir: {tmp_path}/cache\n"
    path.write_text(f"extends: {TINY / 'full.yaml'}\nname: mine\n{data}model: {{max_seq_len: 64}}\n")
    return path


def test_the_record_names_the_rows_that_training_will_read(recipe, tmp_path):
    record = tmp_path / "record.json"
    tasks = ["loss_by_position", {"task": "copy", "lengths": [32], "rows": 2}]
    assert main([str(recipe), "--record", str(record), "--tasks", json.dumps(tasks)]) == 0
    assert read_rows(record) == DataRecord.of(prepare_for(load_recipe(recipe))).rows_digest


@pytest.mark.parametrize(
    ("task", "why"),
    [
        ({"task": "niah_single_1", "lengths": [4096]}, "niah_single_1: lengths: 4096 tokens, and the model takes 64"),
        ({"task": "loss_by_position", "lengths": [1 << 20]}, "loss_by_position: the held-out text has fewer than"),
        ({"task": "copy", "vocab_size": 5000}, "copy: vocab_size: "),
    ],
    ids=["too long", "too little text", "too few tokens"],
)
def test_a_task_that_cannot_be_given_is_refused(recipe, tmp_path, capsys, task, why):
    record = tmp_path / "record.json"
    assert main([str(recipe), "--record", str(record), "--tasks", json.dumps([task])]) == 1
    assert why in capsys.readouterr().err
    assert read_failure(record).startswith(why)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            PartError("source 'mine': mine:Reader must define documents"),
            "source 'mine': mine:Reader must define documents",
        ),
        (MemoryError("no room"), "out of memory: no room; give fewer or shorter rows"),
        (OSError(28, "No space left on device", "rows"), "OSError: [Errno 28] No space left on device: 'rows'"),
    ],
    ids=["part of another package", "memory", "disk"],
)
def test_an_error_that_is_not_the_zoos_is_one_line_of_the_record(recipe, tmp_path, monkeypatch, error, why):
    def prepare(recipe):
        raise error

    monkeypatch.setattr("zoo.data.show.prepare_for", prepare)
    record = tmp_path / "record.json"
    assert main([str(recipe), "--record", str(record)]) == 1
    assert read_failure(record).startswith(why)
    assert "\n" not in read_failure(record)


def test_a_record_of_another_kind_is_named(tmp_path):
    path = tmp_path / "record.json"
    path.write_text('{"rows": 3}')
    with pytest.raises(StudyError, match=r"record\.json: rows: must be a hash; found 3"):
        read_rows(path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_it_ends_with_a_study_that_is_killed(tmp_path):
    """SIGKILL, after which the study can tell nobody anything."""
    hangs = "import time, zoo.study.preparation as p; p._prepare = lambda asked: (open('begun', 'w'), time.sleep(300));"
    study = f"""
import os, subprocess, sys, zoo.study.runner as runner
from pathlib import Path
study = runner.Runner.__new__(runner.Runner)
study.stopping, study._poll_s = False, 0.1
command = [sys.executable, "-c", {hangs!r} + "p.main(['recipe.yaml', '--record', 'record.json'])"]
study.wait_for(command, Path("log.txt"))
"""
    process = subprocess.Popen([sys.executable, "-c", study], cwd=tmp_path)
    try:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.05)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    finally:
        process.kill()
        process.wait()
    until = time.monotonic() + 30
    while alive(int(child)):
        assert time.monotonic() < until, "the preparation goes on without its study"
        time.sleep(0.05)
