"""Runs of studies without training: the files that a training leaves, made by rule. Also a process that makes them.

python synthetic.py RECIPE RUN_DIR [BATCH_S]      a batch every BATCH_S seconds; resumes what is there
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from zoo.processes import end_with_parent
from zoo.recipe.seal import sealed
from zoo.study.preload import PARENT

BATCHES, TOKENS = 10, 100
SEED = 987_654_321
SPEED = 200.0  # tokens/s
_DUMPED: dict = {}
Scores = dict[str, float | dict[str, float]]  # task -> accuracy, or metric -> value


def write_run(
    folder: Path, recipe: str, losses: list[float], scores: Scores | None = None, tokens_per_s: float = SPEED
) -> None:
    """A complete run folder: a validation after each batch with these losses, and the scores."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(sealed(recipe))
    lines = [_line(batch, loss, tokens_per_s) for batch, loss in enumerate(losses, start=1)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    _finish(folder, len(losses))
    if scores:
        digest = json.loads((folder / "summary.json").read_text())["sha256"]
        _write_scores(folder / "eval.json", scores, digest)


def _line(batch: int, loss: float, tokens_per_s: float = SPEED) -> str:
    place = {"batch": batch, "tokens": TOKENS * batch, "time_s": 0.5 * batch}
    step = {**place, "loss": loss, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": tokens_per_s}
    validation = {**place, "validation_loss": loss, "validation_bits_per_byte": loss / 0.6931}
    return json.dumps(step) + "\n" + json.dumps(validation) + "\n"


def _finish(folder: Path, batches: int) -> None:
    metrics = (folder / "metrics.jsonl").read_bytes()
    weights = hashlib.sha256(metrics).hexdigest()
    (folder / "model.safetensors").write_text(weights)
    summary = {
        "version": "0.1.0",
        "name": folder.name,
        "batches": batches,
        "tokens": TOKENS * batches,
        "time_s": 0.5 * batches,
        "parameters": 1000,
        "loss_before": 5.0,
        "loss_after": 4.0,
        "bits_per_byte_before": None,
        "bits_per_byte_after": None,
        "sha256": weights,
        "metrics_sha256": hashlib.sha256(metrics).hexdigest(),
    }
    temporary = folder / "summary.tmp"
    temporary.write_text(json.dumps(summary))
    temporary.replace(folder / "summary.json")


def _write_scores(path: Path, scores: Scores, digest: str, versions: Mapping[str, int] = {}) -> None:
    from zoo.evaluation.results import Result, ResultFile

    kept = ResultFile(path)
    for task, given in scores.items():
        values = given if isinstance(given, dict) else {"accuracy": given}
        metrics = {name: _numbers(value, name in ("nats", "bits_per_byte")) for name, value in values.items()}
        version = versions.get(task, 1)
        kept.add(Result(task, task, {}, version, 0, 100, "0" * 16, metrics, model={"digest": digest}))


def _numbers(value: float, nats: bool) -> dict:
    numbers = {"value": value, "stderr": 0.01, "low": value - 0.02, "high": value + 0.02, "rows": 100}
    kind = ("lower", None) if nats else ("higher", 0.5)
    return {**numbers, "better": kind[0], "chance": kind[1], "share": not nats}


def finish_study(
    runner, loss: Callable, scores: Callable = lambda run: None, speed: Callable = lambda run: SPEED
) -> None:
    """Write every run of a study.

    loss: run -> the final validation loss, None for a run that diverged.  speed: run -> tokens/s.
    """
    runner.folder.make()
    for _ in range(2):  # those that choose, then those that count
        for run in runner.all():
            if runner.folder.folder(run).path.exists() or runner.folder.outcome(run).exists():
                continue
            final = loss(run)
            if final is None:
                outcome = {"state": "diverged", "why": "loss is nan"}
                runner.folder.outcome(run).write_text(json.dumps(outcome))
                continue
            # A power law in the tokens that ends at the loss, so that a curve can be fitted.
            curve = [final * (BATCHES / batch) ** 0.1 for batch in range(1, BATCHES + 1)]
            write_run(runner.folder.folder(run).path, _dump(run), curve, scores(run), speed(run))


def write_device(runner, run, runs_on_device: float | None, device: str = "NVIDIA H200", threads: int = 4) -> None:
    """What a run was trained on, and how many runs were there; None: that was not recorded."""
    (runner.folder.folder(run).path / "environment.json").write_text(json.dumps({"device": device, "threads": threads}))
    if runs_on_device is not None:
        shared = {"seconds": 10.0, "run_seconds": 10.0 * runs_on_device, "whole": True, "open": False}
        (runner.folder.logs / f"device-{run.id}.json").write_text(json.dumps(shared))


def write_training_speed(runner, run, tokens_per_s: float, **machine: str) -> None:
    """The training speed of the architecture of a run, measured alone."""
    found = {"device": "NVIDIA H200", "torch": "2.11.0", "python": "3.12.3", "date": "2026-11-30"} | machine
    row = {"tokens_per_s": tokens_per_s, "step_ms": 1000 * TOKENS / tokens_per_s, "micro_batch": 4, "machine": found}
    report = {"machine": found, "command": "zoo bench train", "rows": [row], "failed": [], "version": "0.2.0"}
    report["recipe"] = run.recipe.model_dump(mode="json")
    (runner.folder.training_speed / f"{run.architecture}.json").write_text(json.dumps(report))


def _dump(run) -> str:
    """The recipe as text; made once for each architecture and point, because that takes the most time."""
    key = run.architecture, run.point.label, id(run.recipe.model)
    if key not in _DUMPED:
        _DUMPED[key] = run.recipe.model_copy(update={"seed": SEED}).dump(), run.recipe
    return _DUMPED[key][0].replace(f"seed: {SEED}\n", f"seed: {run.seed}\n")


def main(recipe: str, run_dir: str, batch_s: str = "0.01", tasks: str = "{}") -> None:
    """Train if it is not done, then score.  tasks: JSON, label -> version."""
    _train(recipe, run_dir, batch_s)
    if wanted := json.loads(tasks):
        folder = Path(run_dir)
        digest = json.loads((folder / "summary.json").read_text())["sha256"]
        _write_scores(folder / "eval.json", dict.fromkeys(wanted, 0.75), digest, wanted)


def _train(recipe: str, run_dir: str, batch_s: str) -> None:
    """The loss depends on the text of the recipe alone, so on its seed and learning rate."""
    folder, text = Path(run_dir), Path(recipe).read_text()
    if (folder / "summary.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "recipe.yaml").exists():
        temporary = folder / "recipe.tmp"
        temporary.write_text(sealed(text))
        temporary.replace(folder / "recipe.yaml")
    noise = random.Random(text)
    losses = [5.0 - 0.2 * batch + 0.01 * noise.random() for batch in range(1, BATCHES + 1)]
    metrics = folder / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines(True) if line.endswith("\n")] if metrics.exists() else []
    done = len(kept) // 2
    metrics.write_text("".join(kept[: 2 * done]))
    for batch in range(done + 1, BATCHES + 1):
        time.sleep(float(batch_s))
        with open(metrics, "a") as file:
            file.write(_line(batch, losses[batch - 1]))
    _finish(folder, BATCHES)


if __name__ == "__main__":
    if PARENT in os.environ:
        end_with_parent(signal.SIGKILL)
    main(*sys.argv[1:])
