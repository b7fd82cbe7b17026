"""Training speeds: how many runs shared a device, which speeds are compared, and those that are measured alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.zoo.study.conftest import TINY
from tests.zoo.study.synthetic import finish_study, write_device, write_training_speed
from tests.zoo.study.test_runner import alive, children
from zoo.files import read_json
from zoo.processes import processor
from zoo.study import measuring, speeds
from zoo.study.findings import findings
from zoo.study.gpus import Gpu
from zoo.study.measuring import training_speed
from zoo.study.plots import drawings
from zoo.study.report import as_markdown, as_text
from zoo.study.runner import Interrupted
from zoo.study.tables import tables

BENCH = """
import json, os, pathlib, sys
pathlib.Path("BENCHES").open("a").write(" ".join([*sys.argv[1:3], os.environ.get("OMP_NUM_THREADS", "?")]) + "\\n")
if "FAIL" in pathlib.Path(sys.argv[2]).stem:
    sys.exit("Error: it does not fit")
row = {"tokens_per_s": 1234.5, "step_ms": 2.0, "micro_batch": 4, "machine": {"device": "CPU, 1 threads"}}
rows = {"train": [row], "decode": [{"context": 16, "batch": 1, "decode_ms": 5.0}]}[sys.argv[1]]
pathlib.Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps({"rows": rows}))
"""
MEASURE = {"contexts": [16], "training": True}


@pytest.fixture
def study(make_runner):
    """`study(on, speed, ...)`: a study that is done.

    on: architecture -> how many runs were on the device of its runs, None if not known.  speed: -> their tokens/s.
    """

    def make(on=lambda run: None, speed=lambda run: 200.0, device=lambda run: "NVIDIA H200", **keys):
        runner = make_runner(**keys)
        finish_study(runner, lambda run: 3.0 + 0.01 * run.seed - 0.1 * (run.architecture != "tiny_full"), speed=speed)
        for run in runner.all():
            write_device(runner, run, on(run), device(run))
        return make_runner(**keys)

    return make


def by_name(**numbers):
    return lambda run: numbers[run.architecture]


def window(found) -> dict:
    return found["measured"]["architectures"]["tiny_window"]


@pytest.mark.parametrize(("full", "window_"), [(4.0, 4.0), (4.0, 4.39), (10.9, 10.0)])
def test_speeds_are_compared_where_equally_many_runs_shared_the_device(study, full, window_):
    runner = study(by_name(tiny_full=full, tiny_window=window_), by_name(tiny_full=200.0, tiny_window=300.0))
    found = findings(runner)
    each = {a["name"]: a for a in found["results"]["architectures"]}
    flops = each["tiny_window"]["flops_per_token"] / each["tiny_full"]["flops_per_token"]
    expected = each["tiny_window"]["speedup"]["compute"] * 1.5 * flops
    assert window(found)["speedup_time"] == pytest.approx(expected)
    assert found["measured"]["comparison"] == {"basis": "runs", "not_comparable": {}}
    assert found["measured"]["notes"] == []
    assert window(found)["runs_on_device"] == (window_, window_)
    assert window(found)["time_curve"][0][0] == 0.5
    assert f"| tiny_window | 300 | {window_:.1f} |" in as_markdown(found)
    assert found["measured"]["runs"]["tiny_window"][0]["runs_on_device"] == window_


UNEQUAL = {
    speeds.OTHER_NUMBER: {"on": lambda run: 16.0 if run.architecture == "tiny_full" else 4.0},
    speeds.NOT_KNOWN: {"on": lambda run: 4.0 if run.id != "tiny_window-seed3" else None},
    speeds.OTHER_DEVICE: {"on": lambda run: 4.0, "device": lambda run: f"GPU of {run.architecture}"},
}


@pytest.mark.parametrize("why", UNEQUAL)
@pytest.mark.parametrize("asked", [False, True])
def test_speeds_are_not_compared_elsewhere_and_the_report_says_why_and_what_to_do(study, why, asked):
    """The first is what happened: runs that shared a GPU with few others were said to be 2.5 times as fast."""
    keys = {"measure": {"training": True}} if asked else {}
    found = findings(study(speed=by_name(tiny_full=120.0, tiny_window=238.0), **UNEQUAL[why], **keys))
    assert found["measured"]["comparison"]["not_comparable"] == {"tiny_window": why}
    assert window(found)["speedup_time"] is None
    assert [each["time_curve"] for each in found["measured"]["architectures"].values()] == [[], []]
    (note,) = found["measured"]["notes"]
    way_out = "zoo study run measures each of them alone."
    way_out = way_out if asked else f"with training: true under measure: in the study file, {way_out}"
    assert note == f"Training speeds are not comparable between tiny_full and tiny_window: {why}; {way_out}"
    assert note in as_text(found, 400)
    cost = next(rows for title, _, rows in tables(found) if title == "cost")
    assert [row[-1] == "not comparable" for row in cost] == [False, True]


def test_runs_of_one_architecture_that_shared_with_other_numbers_are_shown_and_not_compared(study):
    found = findings(study(lambda run: 1.0 if run.id == "tiny_window-seed1" else 4.0))
    assert window(found)["runs_on_device"] == (1.0, 4.0)
    assert found["measured"]["comparison"]["not_comparable"] == {"tiny_window": speeds.OTHER_NUMBER}
    assert "| tiny_window | 200 | 1.0 to 4.0 |" in as_markdown(found)


def test_runs_that_do_not_name_their_device_are_not_compared(make_runner):
    runner = make_runner()
    finish_study(runner, lambda run: 3.0)
    for run in runner.all():
        write_device(runner, run, 1.0)
        (runner.folder.folder(run).path / "environment.json").unlink()
    assert findings(runner)["measured"]["comparison"]["not_comparable"] == {"tiny_window": speeds.NO_DEVICE}


def test_speeds_that_were_measured_alone_are_preferred(study):
    """Although those of the runs are comparable, and others."""
    runner = study(lambda run: 4.0)
    for run, speed in zip((runner.all()[0], runner.all()[-1]), (1000.0, 500.0), strict=True):
        write_training_speed(runner, run, speed)
    found = findings(runner)
    each = {a["name"]: a for a in found["results"]["architectures"]}
    flops = each["tiny_window"]["flops_per_token"] / each["tiny_full"]["flops_per_token"]
    assert found["measured"]["comparison"] == {"basis": "alone", "not_comparable": {}}
    assert window(found)["speedup_time"] == pytest.approx(each["tiny_window"]["speedup"]["compute"] * 0.5 * flops)
    assert window(found)["time_curve"][0][0] == pytest.approx(100 / 500)
    assert "| tiny_window | 500 | 200 | 4.0 |" in as_markdown(found)


def test_speeds_alone_on_other_machines_or_versions_are_not_compared(study):
    runner = study(lambda run: 4.0)
    first, last = runner.all()[0], runner.all()[-1]
    write_training_speed(runner, first, 1000.0)
    for other in ({"device": "NVIDIA H100"}, {"torch": "2.12.0"}):
        write_training_speed(runner, last, 500.0, **other)
        measured = findings(runner)["measured"]
        assert measured["comparison"]["not_comparable"] == {"tiny_window": speeds.OTHER_MACHINE}
        assert "remove speed/training in the study's folder" in measured["notes"][0]
        drawn = [caption for group in drawings(findings(runner)).values() for caption, _ in group]
        assert not [caption for caption in drawn if "training time" in caption or "training speed" in caption]
    write_training_speed(runner, last, 500.0, date="2027-01-01")
    assert findings(runner)["measured"]["comparison"]["not_comparable"] == {}


def test_a_speed_of_the_first_architecture_alone_does_not_stop_the_comparison_of_runs(study):
    runner = study(lambda run: 4.0)
    write_training_speed(runner, runner.all()[0], 1000.0)
    assert findings(runner)["measured"]["comparison"] == {"basis": "runs", "not_comparable": {}}
    assert findings(runner, "tiny_window")["measured"]["comparison"] == {"basis": "runs", "not_comparable": {}}


def test_a_speed_of_another_model_is_not_used(study, make_runner):
    runner = study(lambda run: 4.0)
    run = runner.all()[0]
    write_training_speed(runner, run, 1000.0)
    file = runner.folder.training_speed / "tiny_full.json"
    content = json.loads(file.read_text())
    assert training_speed(runner.folder, run)["tokens_per_s"] == 1000.0
    content["recipe"]["model"]["ffn"]["d_ff"] += 8
    file.write_text(json.dumps(content))
    assert training_speed(runner.folder, run) is None


def test_one_architecture_is_compared_with_nothing(study):
    found = findings(study(lambda run: None, recipes=["full"]))
    assert found["measured"]["notes"] == []
    assert found["measured"]["comparison"]["not_comparable"] == {}


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """`bench()`: what zoo bench was asked to measure; it is made up."""
    script = tmp_path / "bench.py"
    log = tmp_path / "benches.txt"
    script.write_text(BENCH.replace("BENCHES", str(log)))
    monkeypatch.setattr(measuring, "python_module", lambda module, asked: [sys.executable, str(script), *asked[1:]])
    monkeypatch.setattr(measuring, "visible_gpus", list)

    def asked() -> list[list[str]]:
        found = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        return [[what, recipe.rpartition("/")[2].removesuffix(".yaml"), threads] for what, recipe, threads in found]

    return asked


def test_a_study_that_is_done_is_only_measured_and_only_once(study, make_runner, bench):
    runner = study(lambda run: None, device=lambda run: processor(), measure=MEASURE)
    before = {path: path.stat().st_mtime_ns for path in runner.folder.runs.rglob("*")}
    runner.run()
    assert {path: path.stat().st_mtime_ns for path in runner.folder.runs.rglob("*")} == before
    threads = str(runner.folder.threads(0))
    found = [[what, recipe, count] if what == "train" else [what, recipe] for what, recipe, count in bench()]
    assert found == [
        ["decode", "tiny_full-seed1"],
        ["train", "tiny_full-seed1", threads],
        ["decode", "tiny_window-seed1"],
        ["train", "tiny_window-seed1", threads],
    ]
    found = findings(make_runner(measure=MEASURE))
    assert window(found)["alone"]["tokens_per_s"] == 1234.5
    assert found["measured"]["comparison"] == {"basis": "alone", "not_comparable": {}}
    assert sorted(path.name for path in runner.folder.training_speed.iterdir()) == [
        "tiny_full.json",
        "tiny_window.json",
    ]
    make_runner(measure=MEASURE).run()
    assert bench() == []
    (runner.folder.training_speed / "tiny_full.json").unlink()
    make_runner(measure=MEASURE).run()
    assert [asked[:2] for asked in bench()] == [["train", "tiny_full-seed1"]]


def test_without_the_key_training_is_not_measured(study, bench):
    study(measure={"contexts": [16]}).run()
    assert [asked[0] for asked in bench()] == ["decode", "decode"]


def test_a_measurement_that_fails_is_said_and_the_others_go_on(study, make_runner, bench):
    keys = {"recipes": [{"recipe": str(TINY / "full.yaml"), "name": "FAIL"}, "window"], "measure": MEASURE}
    runner = study(device=lambda run: processor(), **keys)
    said = []
    runner.say = said.append
    runner.run()
    assert any(line.startswith("FAIL: training speed could not be measured: Error: it does not fit; log: ")
               for line in said)  # fmt: skip
    assert not (runner.folder.training_speed / "FAIL.json").exists()
    assert read_json(runner.folder.training_speed / "tiny_window.json")["rows"][0]["tokens_per_s"] == 1234.5
    assert [path.name for path in runner.folder.speed.rglob(".*")] == []
    bench()
    make_runner(**keys).run()
    assert [asked[:2] for asked in bench()] == [["decode", "FAIL-seed1"], ["train", "FAIL-seed1"]]


def test_a_study_that_is_stopped_while_it_measures_goes_on_later(study, make_runner, bench):
    runner = study(device=lambda run: processor(), measure=MEASURE)

    def stop(text: str) -> None:
        runner.stopping += text == "tiny_full: measuring training speed"

    runner.say = stop
    with pytest.raises(Interrupted, match=r"^stopped with 8 of 8 runs done; the same command continues$"):
        runner.run()
    assert [path.name for path in runner.folder.training_speed.iterdir()] == []
    bench()
    make_runner(measure=MEASURE).run()
    assert [asked[:2] for asked in bench()] == [
        ["train", "tiny_full-seed1"],
        ["decode", "tiny_window-seed1"],
        ["train", "tiny_window-seed1"],
    ]


def test_training_is_not_measured_on_another_device_than_that_of_the_runs(study, bench):
    runner = study(measure=MEASURE)
    said = []
    runner.say = said.append
    runner.run()
    assert [asked[0] for asked in bench()] == ["decode", "decode"]
    assert (
        "tiny_window: training speed is not measured: its runs were trained on NVIDIA H200, and this machine has "
        f"{processor()}; the same command on a machine with that device measures it"
    ) in said


def test_training_is_measured_on_the_first_gpu(study, bench, monkeypatch):
    gpus = [Gpu("3", "NVIDIA H200", 0), Gpu("5", "NVIDIA H200", 0)]
    monkeypatch.setattr(measuring, "visible_gpus", lambda: gpus)
    runner = study(measure=MEASURE)
    seen = []
    waits = runner.wait_for
    runner.wait_for = lambda command, log, variables: (seen.append(variables), waits(command, log, variables))[1]
    runner.run()
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in seen] == [None, "3", None, "3"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_measurement_ends_with_a_study_that_is_killed(tmp_path):
    """It would go on beside the measurement that the next study makes."""
    recipe = str(TINY / "full.yaml")
    study = f"""
import zoo.study.runner as runner
from pathlib import Path
from zoo.study import measuring
study = runner.Runner.__new__(runner.Runner)
study.stopping, study._poll_s, study.say = False, 0.1, print
asked = ["train", {recipe!r}, "--steps", "1000000"]
measuring._bench(study, "tiny", "training", asked, Path("speed.json"), Path("log.txt"), {{}})
"""
    process, pids = subprocess.Popen([sys.executable, "-c", study], cwd=tmp_path), []
    try:
        while len(pids) < 2:  # zoo bench, and the process that it measures in
            assert process.poll() is None, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)
            pids = [child for each in children(process.pid) for child in (each, *children(each))]
        time.sleep(1)  # for the second to watch the first
        process.kill()
        process.wait()
        until = time.monotonic() + 30
        while any(map(alive, pids)):
            assert time.monotonic() < until, "the measurement goes on without its study"
            time.sleep(0.05)
    finally:
        for pid in filter(alive, [process.pid, *pids]):
            os.kill(pid, signal.SIGKILL)


def test_the_study_of_the_docs_asks_for_it():
    from zoo.study.config import load_study

    path = Path(__file__).parents[3] / "recipes" / "studies" / "asa_small" / "study.yaml"
    assert load_study(path).config.measure.training
    assert not load_study(path, ["measure={}"]).config.measure.training
