"""Folders of studies that are damaged, or somebody else's: every file is named, nothing hangs, no link is followed."""

import json
import os
import shutil

import pytest

from tests.zoo.study.conftest import TINY, runner_of
from tests.zoo.study.synthetic import finish_study, write_device, write_training_speed
from zoo.errors import ZooError
from zoo.files import write_sealed_json
from zoo.study.findings import findings
from zoo.study.report import write_report
from zoo.study.results import keep
from zoo.study.screen import Progress
from zoo.study.state import last_words, latest

LARGE = 10**400


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a study of two runs that are done and written down, with a speed."""
    folder = tmp_path_factory.mktemp("study")
    runner = runner_of(_study_file(folder))
    finish_study(runner, lambda run: 3.0 + 0.01 * run.seed, lambda run: {"mqar": 0.5})
    for run in runner.all():
        keep(runner.folder, run, runner.tasks)
    (runner.folder.speed / "tiny_full.json").write_text(
        json.dumps({"rows": [{"context": 2048, "batch": 1, "decode_ms": 5.0}]})
    )
    (runner.folder.path / "threads.json").write_text('{"threads": 1}')
    return folder


def _study_file(folder):
    path = folder / "study.yaml"
    content = {"name": "toy", "recipes": [str(TINY / "full.yaml")], "seeds": [1, 2], "tasks": ["mqar"]}
    path.write_text(json.dumps(content | {"out": str(folder / "out")}))
    return path


@pytest.fixture
def study(finished, tmp_path):
    """`study()`: a runner over a copy of that folder."""
    shutil.copytree(finished / "out", tmp_path / "out")
    path = _study_file(tmp_path)
    return lambda: runner_of(path)


def change(path, keys, value):
    """Another value under a path of keys, sealed again as a stranger can."""
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    inside = content
    for key in keys[:-1]:
        inside = inside[key]
    if value is ...:
        del inside[keys[-1]]
    else:
        inside[keys[-1]] = value
    write_sealed_json(path, content)


OUTCOMES = [
    *((["results", key], value) for key in ("loss", "tokens", "validation", "scores") for value in (..., "x", LARGE)),
    *((["measured", key], value) for key in ("time_s", "tokens_per_s", "validation_time") for value in (..., [1])),
    (["results", "loss"], "nan"),
    (["results", "scores", "mqar"], [1]),
    (["results", "scores", "mqar", "accuracy", "value"], "x"),
    (["results", "validation"], [[1, "x"]]),
    (["results"], ...),
    (["measured", "runs_on_device"], "x"),
    (["measured", "runs_on_device"], 0.5),
    (["measured", "runs_on_device"], "2"),
    (["measured", "tokens_per_s"], "200"),
    (["results", "loss"], "3.5"),
    (["measured"], None),
    (["recipe"], "x"),
]


@pytest.mark.parametrize(("keys", "value"), OUTCOMES)
def test_an_outcome_of_another_kind_is_named(study, keys, value):
    runner = study()
    change(runner.folder.outcome(runner.all()[0]), keys, value)
    message = rf"outcomes/tiny_full-seed1\.json: damaged, or of another version: {keys[0]}.*; remove it, and the study "
    with pytest.raises(ZooError, match=message):
        findings(study())


@pytest.mark.parametrize("content", [{"state": "lost"}, {"state": None}, {}, {"state": "failed", "why": 5}])
def test_an_outcome_of_no_known_state_is_named(study, content):
    runner = study()
    runner.folder.outcome(runner.all()[0]).write_text(json.dumps(content))
    with pytest.raises(ZooError, match=r"tiny_full-seed1\.json: damaged, .*(state|why): .*; remove it, and the study "):
        findings(study())


@pytest.mark.parametrize("key", ["batches", "tokens", "parameters", "time_s", "sha256"])
@pytest.mark.parametrize("value", [..., [1], LARGE])
def test_a_summary_of_another_kind_is_named(study, key, value):
    runner = study()
    run = runner.all()[0]
    runner.folder.outcome(run).unlink()
    change(runner.folder.folder(run).summary, [key], value)
    with pytest.raises(ZooError, match=rf"summary\.json: damaged, or of another version: {key}: .*; remove its folder"):
        findings(study())


ROWS = [
    5,
    {"rows": 5},
    {"rows": [5]},
    *({"rows": [{"context": 8, "batch": 1, "decode_ms": v}]} for v in (0, "x", -1, "5")),
]


@pytest.mark.parametrize("content", [*ROWS, {"rows": [{}]}])
def test_speeds_of_another_kind_are_named(study, content):
    runner = study()
    (runner.folder.speed / "tiny_full.json").write_text(json.dumps(content))
    with pytest.raises(ZooError, match=r"speed/tiny_full\.json: damaged.*; remove it, and zoo study run"):
        write_report(runner.runs, runner.folder)


@pytest.mark.parametrize("value", [0, -1, "x", "2", None, LARGE, [1]])
def test_threads_of_another_kind_are_named(study, value):
    folder = study().folder
    (folder.path / "threads.json").write_text(json.dumps({"threads": value}))
    with pytest.raises(ZooError, match=r"threads\.json: damaged, or of another version: threads: "):
        folder.threads(2)


TRAINING = [5, {"rows": []}, {"rows": [5]}, {"version": 5}, {"recipe": []}, {}]


ROW = [{"tokens_per_s": 0}, {"tokens_per_s": "200"}, {"machine": None}, {"machine": {"device": 5}}]


@pytest.mark.parametrize("content", [*TRAINING, *({"rows": [row]} for row in ROW)])
def test_training_speeds_of_another_kind_are_named(study, content):
    runner = study()
    write_training_speed(runner, runner.all()[0], 200.0)
    file = runner.folder.training_speed / "tiny_full.json"
    good = json.loads(file.read_text())
    assert write_report(runner.runs, runner.folder)["measured"]["architectures"]["tiny_full"]["alone"]
    if isinstance(content, dict) and content:
        if content.get("rows") and isinstance(content["rows"][0], dict):
            content = {"rows": [good["rows"][0] | content["rows"][0]]}
        content = good | content
    file.write_text(json.dumps(content))
    with pytest.raises(ZooError, match=r"speed/training/tiny_full\.json: damaged.*; remove it, and zoo study run"):
        write_report(runner.runs, runner.folder)


@pytest.mark.parametrize("value", ["x", "20", None, -1, LARGE, [1]])
def test_records_of_sharing_of_another_kind_are_named(study, value):
    runner = study()
    run = runner.all()[0]
    runner.folder.outcome(run).unlink()
    write_device(runner, run, 2.0)
    file = runner.folder.logs / f"device-{run.id}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"run_seconds": value}))
    with pytest.raises(ZooError, match=r"logs/device-tiny_full-seed1\.json: damaged.*run_seconds.*; remove it, and "):
        write_report(runner.runs, runner.folder)


NAMES = ["outcomes/tiny_full-seed1.json", "speed/tiny_full.json", "runs/tiny_full-seed1/summary.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["FIFO", "link"])
def test_a_fifo_or_a_link_to_nothing_is_named(study, name, kind):
    runner = study()
    path = runner.folder.path / name
    if name.startswith("runs"):
        (runner.folder.path / NAMES[0]).unlink()
    path.unlink()
    os.mkfifo(path) if kind == "FIFO" else path.symlink_to("nowhere")
    with pytest.raises(ZooError, match=f"{path}: "):
        write_report(runner.runs, runner.folder)


def test_looking_does_not_wait_for_a_fifo(study):
    """The lock, the log, the metrics of a run at work, and what the study does now."""
    folder = study().folder
    for name in (".lock", "running.json", "runs/tiny_full-seed1/metrics.jsonl", "logs/tiny_full-seed1.txt"):
        (folder.path / name).unlink(missing_ok=True)
        os.mkfifo(folder.path / name)
    assert not folder.is_running()
    assert latest(folder.runs / "tiny_full-seed1" / "metrics.jsonl") == {}
    assert last_words(folder.logs / "tiny_full-seed1.txt") == ""
    runner = study()
    assert "2 done" in Progress(runner, folder.now_running()).headline()


@pytest.mark.parametrize("content", ['{"runs": 5}', '{"runs": {"a": 1}}', "[]", "{"])
def test_what_runs_now_is_a_list(study, content):
    folder = study().folder
    with folder.locked():
        folder.running.write_text(content)
        assert folder.now_running() == []


def test_numbers_that_overflow_are_no_progress(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"batch": {LARGE}, "tokens": 3}}\n' + "[" * 10_000 + "\n")
    assert latest(path) == {"tokens": 3}


@pytest.mark.parametrize("name", ["runs", "logs", "outcomes"])
def test_nothing_is_written_through_a_linked_folder(study, tmp_path, name):
    folder = study().folder
    shutil.rmtree(folder.path / name)
    (tmp_path / "outside").mkdir()
    (folder.path / name).symlink_to(tmp_path / "outside")
    with pytest.raises(ZooError, match="nothing is written through a link"):
        study().run()
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_linked_log_is_replaced_or_refused(study, tmp_path):
    from zoo.study.preload import start_process

    runner = study()
    (tmp_path / "precious").write_text("mine")
    for name in ("prepare-1.txt", "run.txt"):
        (runner.folder.logs / name).symlink_to(tmp_path / "precious")
    assert runner.wait_for(["true"], runner.folder.logs / "prepare-1.txt") == 0
    with pytest.raises(ZooError, match="nothing is written through a link"):
        start_process(["true"], runner.folder.logs / "run.txt", dict(os.environ))
    assert (tmp_path / "precious").read_text() == "mine"
