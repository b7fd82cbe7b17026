"""Evaluation tasks and accuracy while a model trains."""

import json
import os
import re
import signal
import time

import pytest

from zoo.errors import RecipeError
from zoo.recipe import load_recipe
from zoo.training import scores, train
from zoo.training.interrupts import Interrupted

RECALL = """
name: recall
seed: 1
model:
  d_model: 32
  vocab_size: 32
  max_seq_len: 16
  ffn: {kind: swiglu, d_ff: 48}
  blocks: {full: {kind: full, n_heads: 2}}
  layers: full*2
data:
  source: {kind: synthetic, task: copy, vocab_size: 16, span: 4, length: 12, rows: 4000, validation_rows: 64}
  cache_dir: FOLDER/cache
train:
  duration: 400ba
  batch_size: 32
  workers: 0
  optimizer: {lr: 5e-3}
  schedule: {warmup: 10ba}
  stop_at: {accuracy: 0.95}
eval:
  every: 20ba
  batches: all
  tasks: [{task: copy, rows: 40}, {task: mqar, lengths: [12], pairs: [2], vocab_size: 16, rows: 10}]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recall")
    path = folder / "recall.yaml"
    path.write_text(RECALL.replace("FOLDER", str(folder)))
    return path


@pytest.fixture(scope="module")
def run(recipe):
    folder = recipe.parent / "run"
    train(load_recipe(recipe), folder)
    return folder


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_reports_accuracy_and_stops_once_it_is_reached(run):
    accuracy = {r["batch"]: r["validation_accuracy"] for r in records(run) if "validation_loss" in r}
    assert accuracy[0] < 0.3
    last = max(accuracy)
    assert accuracy[last] >= 0.95
    assert all(value < 0.95 for batch, value in accuracy.items() if batch < last)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["batches"] == last < 400


def test_tasks_are_scored_at_each_interval(run):
    scored = [r for r in records(run) if any(name.startswith("task/") for name in r)]
    validated = [r["batch"] for r in records(run) if "validation_loss" in r and r["batch"]]
    assert [r["batch"] for r in scored] == validated
    assert {"task/copy(rows=40)/accuracy", "task/copy(rows=40)/accuracy/stderr", "task/copy(rows=40)/nats"} <= set(
        scored[-1]
    )
    assert scored[-1]["task/copy(rows=40)/accuracy"] > 0.9
    assert any(name.startswith("task/mqar(") for name in scored[-1])
    assert "copy(rows=40): accuracy" in (run / "log.txt").read_text()


def test_the_scores_of_training_are_those_of_zoo_eval(run):
    from zoo.evaluation import evaluate

    [result] = evaluate(run, ["copy"], rows=40, device="cpu")
    scored = [r for r in records(run) if "task/copy(rows=40)/accuracy" in r][-1]
    assert result.metrics["accuracy"]["value"] == pytest.approx(scored["task/copy(rows=40)/accuracy"], abs=1e-6)


def test_a_run_that_stopped_at_its_accuracy_is_complete(run, recipe, capsys):
    before = (run / "metrics.jsonl").read_text()
    train(load_recipe(recipe), run)
    assert "run complete" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_text() == before


def test_killed_before_the_weights_it_trains_no_further(run, recipe, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    weights = (run / "model.safetensors").read_bytes()
    train(load_recipe(recipe), copy)
    assert (copy / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.tasks=[mqra]", "eval.tasks[0]: unknown task 'mqra'"),
        ("eval.tasks=[{task: mqar, pears: 2}]", "eval.tasks[0].pears: unknown key 'pears'"),
        ("train.stop_at={accuracy: 2}", "train.stop_at.accuracy"),
    ],
)
def test_a_task_or_share_that_cannot_be_is_refused_when_the_recipe_is_read(recipe, override, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(recipe, [override])


def test_stop_at_needs_answers(recipe, tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 400)
    overrides = [
        f"data.source={{kind: text, paths: [{tmp_path}/a.txt], separator: ' '}}",
        "model.vocab_size=264",
        "eval.tasks=[]",
        "data.validation_fraction=0.3",
    ]
    with pytest.raises(RecipeError, match="stop_at"):
        train(load_recipe(recipe, overrides), tmp_path / "run")


@pytest.mark.slow
def test_a_signal_while_tasks_are_scored_leaves_the_scores_out_and_stops(recipe, tmp_path, monkeypatch):
    """Scoring may take many minutes, and who stops a run waits for seconds."""
    plain, asked = scores.answer, []

    def answer(subject, examples, *more):
        asked.append(len(examples))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # a bytecode boundary at which the handler runs
        return plain(subject, examples, *more)

    monkeypatch.setattr(scores, "answer", answer)
    with pytest.raises(Interrupted, match="stopped after batch"):
        train(load_recipe(recipe), tmp_path / "run")
    assert asked == [40]
    assert not any(name.startswith("task/") for record in records(tmp_path / "run") for name in record)
