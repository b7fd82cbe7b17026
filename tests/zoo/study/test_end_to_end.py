"""A small study that really trains: what a new user types, with kills of the study and of its runs. Takes minutes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.zoo.study.conftest import TINY
from tests.zoo.study.test_runner import children

ROOT = Path(__file__).parents[3]
SMALL = {
    "train.duration": "12ba",
    "train.batch_size": 4,
    "train.workers": 0,
    "train.schedule.warmup": "2ba",
    "train.checkpoint": {"every": "3ba"},
    "model.d_model": 32,
    "model.max_seq_len": 64,
    "eval": {"every": "4ba", "batches": 2},
}


def write(folder: Path, name: str) -> Path:
    recipes = [str(TINY / "full.yaml"), {"recipe": str(TINY / "window.yaml"), "set": {"model.blocks.local.window": 8}}]
    content = {
        "name": name,
        "recipes": recipes,
        "seeds": [1, 2],
        "set": SMALL,
        "jobs": 2,
        "match": {"parameters": "1%"},
        "grid": {"train.optimizer.lr": [1e-3, 3e-3]},
        "out": str(folder / name),
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content))
    return path


def start(study: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "zoo", "study", "run", str(study)]
    with open(study.with_suffix(".txt"), "ab") as log:
        return subprocess.Popen(command, cwd=study.parent, env=environment, stdout=log, stderr=log)


def finish(process: subprocess.Popen, study: Path) -> None:
    assert process.wait(timeout=1200) == 0, study.with_suffix(".txt").read_text()


def offspring(pid: int) -> list[int]:
    found = children(pid)
    return found + [each for child in found for each in offspring(child)]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_study_that_is_killed_again_and_again_ends_with_the_same_results(tmp_path):
    study = write(tmp_path, "toy")
    finish(start(study), study)
    results = tmp_path / "toy" / "results.json"
    expected = results.read_text()
    assert [run["state"] for each in json.loads(expected)["architectures"] for run in each["runs"]] == ["done"] * 2
    results.parent.rename(tmp_path / "whole")

    draw, kills = random.Random(5), 0
    while kills < 5:
        process = start(study)
        end = time.monotonic() + draw.uniform(10, 60)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
            if draw.random() < 0.03 and (running := offspring(process.pid)):
                os.kill(draw.choice(running), signal.SIGKILL)
                kills += 1
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    assert kills >= 1
    finish(start(study), study)
    assert results.read_text() == expected


@pytest.mark.long
def test_speeds_are_measured_after_the_runs_and_the_runs_say_how_many_shared_the_device(tmp_path):
    study = write(tmp_path, "toy")
    content = json.loads(study.read_text()) | {"grid": {}}
    study.write_text(json.dumps(content))
    finish(start(study), study)
    measured = json.loads((tmp_path / "toy" / "measured.json").read_text())
    shared = [run["runs_on_device"] for each in measured["runs"].values() for run in each]
    assert len(shared) == 4
    assert all(1.0 <= each <= 2.0 for each in shared)
    study.write_text(json.dumps(content | {"measure": {"contexts": [16], "training": True}}))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "toy" / "runs").rglob("*")}
    finish(start(study), study)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "toy" / "runs").rglob("*")} == before
    measured = json.loads((tmp_path / "toy" / "measured.json").read_text())
    assert measured["comparison"] == {"basis": "alone", "not_comparable": {}}
    assert all(each["alone"]["tokens_per_s"] > 100 for each in measured["architectures"].values())


@pytest.mark.long
def test_a_task_more_is_scored_and_nothing_is_trained_anew_and_other_text_is_refused(tmp_path):
    study = write(tmp_path, "toy")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("the window of a token is a block of tokens\n" * 2000)
    content = json.loads(study.read_text()) | {"grid": {}, "seeds": [1]}
    content["set"]["data.source"] = {"kind": "text", "paths": [str(tmp_path / "text")]}
    content["set"]["data.cache_dir"] = str(tmp_path / "cache")
    study.write_text(json.dumps(content))
    finish(start(study), study)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "toy" / "runs").glob("*/m*") if path.is_file()}
    assert len(before) == 6
    study.write_text(
        json.dumps(content | {"tasks": ["loss_by_position", {"task": "copy", "lengths": [32], "rows": 3}]})
    )
    finish(start(study), study)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    results = json.loads((tmp_path / "toy" / "results.json").read_text())
    assert results["tasks"] == ["loss_by_position", "copy(lengths=[32], rows=3)"]
    assert all(
        numbers["mean"] for each in results["architectures"] for numbers in each["scores"][results["tasks"][1]].values()
    )
    (tmp_path / "text" / "b.txt").write_text("another text\n" * 200)
    study.write_text(json.dumps(content | {"seeds": [1, 2]}))
    process = start(study)
    assert process.wait(timeout=600) == 1
    assert (
        "2 were trained on other rows than those prepared now for tiny_full-seed2"
        in study.with_suffix(".txt").read_text()
    )
    assert len(list((tmp_path / "toy" / "runs").iterdir())) == 2
