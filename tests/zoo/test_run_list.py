"""`zoo runs` and `zoo show RUN`: complete, stopped, running and damaged runs, wherever they lie below a folder."""

import errno
import fcntl
import json
import os
import threading

import pytest

from zoo import cli
from zoo.errors import ZooError
from zoo.recipe import load_recipe
from zoo.runs.folder import RunFolder

RECORDS = [
    {"batch": 0, "tokens": 0, "time_s": 0.0, "validation_loss": 5.2, "validation_bits_per_byte": 7.5},
    {"batch": 20, "tokens": 81_920, "time_s": 9.0, "validation_loss": 2.25, "validation_bits_per_byte": 3.246},
    {"batch": 24, "tokens": 98_304, "time_s": 11.0, "loss": 2.2},
]


def make_run(path, finished=False, records=RECORDS):
    folder = RunFolder(path)
    path.mkdir(parents=True)
    folder.recipe.write_text(load_recipe("zoo:tiny/full").dump())
    folder.environment.write_text("{}")
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    if finished:
        folder.weights.write_bytes(b"")
        folder.write_summary({"parameters": 811_328})
    return folder


def strictly(text):
    """JSON as everybody but Python reads it."""

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def zoo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def zoo(*arguments):
        code = cli.run(list(arguments))
        return code, *capsys.readouterr()

    return zoo


def test_runs_are_found_at_every_depth_and_told_apart(zoo, tmp_path):
    make_run(tmp_path / "runs" / "done", finished=True)
    make_run(tmp_path / "runs" / "studies" / "two" / "runs" / "deep")
    make_run(tmp_path / "runs" / "begun", records=[])
    damaged = make_run(tmp_path / "runs" / "hurt")
    damaged.metrics.write_text("{\n")
    (tmp_path / "runs" / "notes").mkdir()
    code, out, err = zoo("runs", "--json")
    assert (code, err) == (0, "")
    found = {one["run"]: one for one in json.loads(out)}
    assert list(found) == ["runs/begun", "runs/done", "runs/hurt", "runs/studies/two/runs/deep"]
    assert [one["state"] for one in found.values()] == ["stopped", "complete", "damaged", "stopped"]
    assert {key: found["runs/done"][key] for key in ("batches", "tokens", "parameters", "loss", "bits_per_byte")} == {
        "batches": 24, "tokens": 98_304, "parameters": 811_328, "loss": 2.25, "bits_per_byte": 3.246
    }  # fmt: skip
    assert "metrics.jsonl:1: damaged, not JSON" in found["runs/hurt"]["why"]
    shown = zoo("runs")[1]
    assert "runs/done" in shown
    assert "811,328" in shown
    assert "metrics.jsonl:1: damaged" in shown


def test_a_run_that_another_process_holds_is_training(zoo, tmp_path):
    folder = make_run(tmp_path / "runs" / "now")
    with (folder.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert json.loads(zoo("runs", "--json")[1])[0]["state"] == "training"
    assert json.loads(zoo("runs", "--json")[1])[0]["state"] == "stopped"


def test_a_run_that_is_a_link_is_found_once_and_a_circle_ends(zoo, tmp_path):
    make_run(tmp_path / "elsewhere" / "far", finished=True)
    make_run(tmp_path / "runs" / "near")
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere" / "far")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs")
    found = json.loads(zoo("runs", "--json")[1])
    assert [one["run"] for one in found] == ["runs/linked", "runs/near"]


def test_a_count_that_is_none_is_a_damaged_run(zoo, tmp_path):
    make_run(tmp_path / "runs" / "strange", finished=True).write_summary({"parameters": "many"})
    code, out, err = zoo("runs")
    assert (code, err) == (0, "")
    assert "summary.json: parameters: must be a whole number; found 'many'" in out.replace("\n", " ")
    assert "damaged: runs/strange/summary.json: parameters" in zoo("show", "runs/strange")[1]


def test_looking_does_not_keep_a_training_from_beginning(tmp_path):
    """`zoo runs` tries the lock for an instant; a process that trains keeps it."""
    folder = make_run(tmp_path / "now")
    with (folder.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        timer = threading.Timer(0.15, fcntl.flock, (lock, fcntl.LOCK_UN))
        timer.start()
        with folder.locked():
            timer.join()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ZooError, match="now: another process is training into this folder"), folder.locked():
            pass


def test_a_folder_that_cannot_be_read_is_in_the_list(zoo, tmp_path, monkeypatch):
    """One that may not be listed, and one that may be listed and not entered; root, who runs tests too, may do both."""
    make_run(tmp_path / "runs" / "done", finished=True)
    for name in ("closed", "listed"):
        (tmp_path / "runs" / name).mkdir()
    scandir, stat = os.scandir, os.stat
    denied = PermissionError(errno.EACCES, "Permission denied", "runs/closed")

    def scan(path):
        if os.fspath(path) == "runs/closed":
            raise denied
        return scandir(path)

    def look(path, **settings):
        if path == "runs/listed/.":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, **settings)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(os, "stat", look)
    code, out, err = zoo("runs", "--json")
    assert (code, err) == (0, "")
    found = {one["run"]: (one["state"], one["why"]) for one in json.loads(out)}
    closed = ("unreadable", "cannot be read: Permission denied")
    assert found == {"runs/closed": closed, "runs/done": ("complete", None), "runs/listed": closed}
    assert "runs/listed: cannot be read: Permission denied" in zoo("runs")[1]


def test_a_loss_that_is_no_number_is_null_in_json(zoo, tmp_path):
    records = [{"batch": 0, "validation_loss": float("nan"), "validation_bits_per_byte": float("-inf")}]
    make_run(tmp_path / "runs" / "diverged", records=records)
    assert "NaN" in (tmp_path / "runs" / "diverged" / "metrics.jsonl").read_text()
    (found,) = strictly(zoo("runs", "--json")[1])
    assert (found["loss"], found["bits_per_byte"]) == (None, None)
    assert strictly(zoo("show", "runs/diverged", "--json")[1])["run"]["loss"] is None


@pytest.mark.parametrize("folder", ["runs", "empty"])
def test_without_runs_it_says_where_they_come_from(zoo, tmp_path, folder):
    (tmp_path / "empty").mkdir()
    code, out, err = zoo("runs", folder)
    assert (code, out) == (2, "")
    assert err.startswith(f"{folder}: ")
    assert err.endswith("runs are made by zoo train, by default in runs/\n")


def test_show_takes_a_run_as_it_was_trained(zoo, tmp_path):
    make_run(tmp_path / "runs" / "done", finished=True)
    code, out, err = zoo("show", "runs/done")
    assert (code, err) == (0, "")
    assert "tiny_full  Full attention, grouped queries" in out
    assert "run runs/done: complete, 24 batches, 98,304 tokens; validation loss 2.2500, 3.246 bits per byte" in out
    found = json.loads(zoo("show", "runs/done", "--json")[1])
    assert found["run"]["loss"] == 2.25
    assert found["layers"]
    code, _, err = zoo("show", "runs/done", "--set", "seed=3")
    assert code == 2
    assert "a run is shown as it was trained; found seed=3" in err
    code, _, err = zoo("show", "runs")
    assert code == 2
    why = "runs is neither a recipe nor a run folder; zoo runs lists the runs"
    assert err == f"runs/recipe.yaml: no such file; {why}.\n"
