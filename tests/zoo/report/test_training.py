"""`zoo compare --train` and `--measure`: the same rows for all, one run folder each, resumable; failures stay apart."""

import io
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from zoo.recipe import load_recipe
from zoo.report import training
from zoo.report.columns import Column, load_columns
from zoo.report.compare import Request, compare
from zoo.report.measure import measure_column
from zoo.report.training import Progress, sameness, train_columns

RECIPE = """\
name: {name}
seed: {seed}
model:
  d_model: 16
  vocab_size: 264
  max_seq_len: 32
  ffn: {{d_ff: 32}}
  blocks: {{a: {{kind: {kind}, n_heads: 2}}}}
  layers: a*2
data:
  source: {{kind: text, paths: [{text}]}}
  validation_fraction: 0.3
  cache_dir: {cache}
train: {{batch_size: 4, workers: 0, schedule: {{warmup: 2ba}}}}
eval: {{batches: 2}}
"""


@pytest.fixture
def recipe(tmp_path: Path):
    """`recipe("a", "full")`: the path of a recipe over a small text."""
    (tmp_path / "text").mkdir()
    for number in range(24):
        (tmp_path / "text" / f"{number:02}.txt").write_text("window latent block token head layer " * (number + 3))

    def make(name: str, kind: str, seed: int = 3) -> str:
        path = tmp_path / f"{name}.yaml"
        values = {"name": name, "kind": kind, "seed": seed, "text": tmp_path / "text", "cache": tmp_path / "cache"}
        path.write_text(RECIPE.format(**values))
        return str(path)

    return make


def plain() -> Console:
    return Console(file=io.StringIO(), width=120)


@pytest.mark.slow
@pytest.mark.long
def test_trains_each_on_the_same_rows_and_goes_on_where_it_stopped(recipe, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sources = [recipe("a", "full"), recipe("b", "window"), recipe("c", "full", seed=4)]
    request = Request(sources, runs_dir=tmp_path / "runs", train="6ba", json=True)
    first, second, third = json.loads(compare(request))["columns"]
    assert (first["error"], second["error"]) == (None, None)
    assert (first["run"]["batches"], second["run"]["batches"]) == (6, 6)
    assert first["run"]["tokens"] == second["run"]["tokens"] == 6 * 4 * 32
    losses = [[loss for _, _, loss in column["run"]["training"]] for column in (first, second)]
    assert losses[0] == losses[1], "a window wider than the row is full attention: the same rows give the same losses"
    assert "needs the data, order and batches of a: seed is 4 here, 3 there" in third["error"]
    assert not (tmp_path / "runs" / "c").exists()
    weights = tmp_path / "runs" / "a" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = json.loads(compare(replace(request, sources=[sources[0], sources[2]])))["columns"]
    assert weights.stat().st_mtime_ns == before, "a finished run is left alone"
    assert again[0]["run"]["training"] == first["run"]["training"]
    assert "b: done" in capfd.readouterr().err


def test_a_training_that_fails_gives_its_column_the_reason(recipe, tmp_path):
    """The run folder holds a run of another model: `zoo train` refuses, the other columns are as they were."""
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    source = recipe("a", "full")
    (folder / "recipe.yaml").write_text(load_recipe(source, ["model.d_model=8"]).dump())
    columns = load_columns([source, "nope.yaml"])
    made = train_columns(columns, tmp_path / "runs", (), plain())
    assert made[0].error.startswith("not trained: ")
    assert "model.d_model: was 8 when" in made[0].error
    assert made[0].run is None
    assert made[1] == columns[1]


def test_a_run_beside_recipes_that_train_stays_as_it_was(tiny, run, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(training, "_train", lambda column, folder, overrides, tell: trained.append(column) or column)
    folder = run("full", [4.0, 3.0])
    found = json.loads(compare(Request([folder, tiny("nsa")], train="90ba", runs_dir=tmp_path, json=True)))
    assert [column["error"] for column in found["columns"]] == [None, "not trained: --train needs the data, order and "
        "batches of full: train.duration is '90ba' here, '150ba' there; --set makes them equal"]  # fmt: skip
    again = json.loads(compare(Request([folder, tiny("nsa")], train="150ba", runs_dir=tmp_path, json=True)))
    assert [column["error"] for column in again["columns"]] == [None, None]
    assert [column.label for column in trained] == ["tiny_nsa"]


def test_two_recipes_of_one_name_do_not_share_a_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_train", lambda column, *rest: column)
    made = train_columns(load_columns([tiny("full"), tiny("full"), tiny("nsa")]), tmp_path, (), plain())
    assert [bool(column.error) for column in made] == [False, True, False]
    assert "another recipe has the name 'tiny_full', which names the run folder" in made[1].error


@pytest.mark.parametrize(
    ("override", "key"),
    [("seed=9", "seed"), ("data.shuffle=false", "data.shuffle"), ("train.batch_size=2", "train.batch_size"),
     ("data.seq_len=16", "data.seq_len"), ("model.vocab_size=272", "model.vocab_size"),
     ("data.validation_fraction=0.5", "data.validation_fraction")],
)  # fmt: skip
def test_what_decides_the_rows(tiny, override, key):
    ours, theirs = sameness(load_recipe(tiny("full"))), sameness(load_recipe(tiny("full"), [override]))
    assert [name for name in ours if ours[name] != theirs[name]] == [key]


def test_what_does_not_change_the_rows(tiny):
    changed = ["data.workers=2", "data.cache_dir=elsewhere", "train.optimizer.lr=1.0", "data.seq_len=256"]
    changed += ["data.source=null", "data.tokenizer=null"]  # what the tiny recipes say is what goes unsaid
    assert sameness(load_recipe(tiny("full"))) == sameness(load_recipe(tiny("nsa"), changed))


def test_ctrl_c_lets_the_run_save_and_says_how_to_go_on(tiny, tmp_path, monkeypatch):
    class Child:
        returncode = None

        def __init__(self, *arguments, **options):
            self.waits = 0

        def poll(self):
            return None

        def wait(self, timeout=None):
            self.waits += 1
            if self.waits == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(training.subprocess, "Popen", Child)
    with pytest.raises(training.Interrupted, match="the same command continues") as raised:
        train_columns(load_columns([tiny("full"), tiny("nsa")]), tmp_path, (), plain())
    assert raised.value.exit_code == 130


def test_sigterm_is_passed_on_to_the_training(tiny, tmp_path, monkeypatch):
    """A stand-in for `zoo train` that ends as it does on SIGTERM; the signal reaches this process alone."""
    ready, popen = tmp_path / "ready", training.subprocess.Popen
    code = "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); "
    code += f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    monkeypatch.setattr(
        training.subprocess, "Popen", lambda _, **options: popen([sys.executable, "-c", code], **options)
    )

    def send() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    handler, console = signal.getsignal(signal.SIGTERM), plain()
    with pytest.raises(training.Interrupted, match="the same command continues"):
        train_columns(load_columns([tiny("full"), tiny("nsa")]), tmp_path, (), console)
    sender.join()
    assert "tiny_full: stopped" in console.file.getvalue()
    assert "failed" not in console.file.getvalue()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_table_shows_how_far_each_run_is(tiny, run):
    folder = Path(run("full", [4.0, 3.0, 2.0]))
    columns = [*load_columns([tiny("full"), tiny("nsa")]), Column("x", "x", error="no")]
    progress = Progress(columns, [folder, folder.parent / "none", None], plain())
    progress.set(0, "trains")
    progress.set(0, "trains")
    console = plain()
    console.print(progress.table())
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert lines[1] == ["tiny_full", "trains", "3", "of", "150", "2.0000", "3.1000"]
    assert lines[2] == ["tiny_nsa", "waits", "0", "of", "150", "-", "-"]
    assert lines[3] == ["x", "failed"]
    assert progress.console.file.getvalue() == "tiny_full: batch 3  loss 2.0000  validation 3.1000\n"


@pytest.mark.slow
def test_measures_speed_and_memory(tiny, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    column, found = measure_column(load_columns([tiny("window")])[0], 64, ["model.layers=local"])
    assert column.error is None
    assert found["seq_len"] == 64
    assert found["prefill_tokens_per_s"] > found["training_tokens_per_s"] > 0
    assert found["cache_bytes"] == 4 * 64 * 2 * 2 * 32, "one layer, float32, keys and values of 2 heads"
    peaks = found["prefill_peak_bytes"], found["training_peak_bytes"]
    assert peaks == (None, None) if not os.access("/proc/self/clear_refs", os.W_OK) else 0 < peaks[0] <= peaks[1]


def test_a_measurement_that_fails_gives_its_column_the_reason(tiny):
    column, found = measure_column(load_columns([tiny("full")])[0], 64, ["model.d_model=127"])
    assert found is None
    assert column.error.startswith("measuring failed: ")
    assert "n_heads" in column.error
    failed = Column("x", "x", error="no")
    assert measure_column(failed, 64) == (failed, None)


def test_a_complete_run_of_other_settings_is_not_shown_as_this_recipe(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(training.subprocess, "Popen", lambda *_, **__: pytest.fail("nothing is trained"))
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    sources = [recipe("a", "full"), recipe("b", "full")]
    (folder / "recipe.yaml").write_text(load_recipe(sources[0], ["train.duration=3ba"]).dump())
    (folder / "metrics.jsonl").write_text('{"batch": 3, "tokens": 9, "time_s": 1.0, "validation_loss": 2.0}\n')
    for name, text in (("summary.json", "{}"), ("model.safetensors", "x")):
        (folder / name).write_text(text)
    overrides = ["train.optimizer.lr=0.5"]
    columns = load_columns(sources, overrides, "3ba")[:1]
    (made,) = train_columns(columns, tmp_path / "runs", [*overrides, "train.duration=3ba"], plain())
    assert made.run is None
    assert "not trained: train.optimizer.lr: was 0.0003 when" in made.error
    assert "was trained, which is complete, and is 0.5 now" in made.error


def test_a_refusal_of_training_is_shown_whole_and_without_old_numbers(recipe, tmp_path, monkeypatch):
    said = ["preparing text (0.1 MB)", *(f"data.sources[{i}]: text: not the data" for i in range(5))]
    script = f"import sys; print({chr(10).join(said)!r}, file=sys.stderr); sys.exit(2)"
    monkeypatch.setattr(training, "python_module", lambda *_: [sys.executable, "-c", script])
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(load_recipe(recipe("a", "full"), ["train.duration=3ba"]).dump())
    (folder / "metrics.jsonl").write_text('{"batch": 3, "tokens": 9, "time_s": 1.0, "validation_loss": 2.0}\n')
    columns = load_columns([str(tmp_path / "a.yaml")], (), "3ba")
    (made,) = train_columns(columns, tmp_path / "runs", ["train.duration=3ba"], plain())
    assert made.run is None
    assert made.error == "training failed: " + "\n".join(said[1:])
