"""metrics.jsonl and the messages of a training."""

import io
import json
import os

import pytest
from rich.console import Console

from zoo.errors import RecipeError, ZooError
from zoo.runs.metrics import read_metrics
from zoo.training import loggers
from zoo.training.config import EvalConfig, TrainConfig
from zoo.training.loggers import JsonLines, TensorBoard
from zoo.training.plan import Plan
from zoo.training.screen import Screen
from zoo.training.summary import as_time


def write(path, start, batches):
    log = JsonLines(path, start)
    for batch in batches:
        log({"batch": batch, "loss": 1.0 + batch})
    log.close()


def test_a_resumed_run_has_every_batch_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, [1, 2, 3, 4, 5])
    with open(path, "a") as file:
        file.write('{"batch": 6, "lo')  # a kill in the middle of a line
    assert [record["batch"] for record in read_metrics(path)] == [1, 2, 3, 4, 5]
    write(path, 3, [4, 5, 6])
    assert [record["batch"] for record in read_metrics(path)] == [1, 2, 3, 4, 5, 6]
    write(path, 0, [1])
    assert [json.loads(line)["batch"] for line in path.read_text().splitlines()] == [1]


def test_lost_records_are_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, [1, 2, 3, 4])
    with path.open("a") as file:
        file.write('{"batch": 4, "validation_loss": 2.0}\n')
    for start, missing in ((4, 0), (3, 0), (6, 3)):  # those after the start are dropped, one after another
        log = JsonLines(path, start)
        log.close()
        assert log.missing == missing
    path.unlink()
    log = JsonLines(path, 3)
    log.close()
    assert log.missing == 3


@pytest.mark.parametrize("line", ["\0\0\0", '{"loss": 1.0}', "[]", "{"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, [1, 2])
    with open(path, "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ZooError, match=r"metrics\.jsonl:3: damaged, no"):
        read_metrics(path)


def test_tensorboard_events_can_be_read_back(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, batches in [(0, [1, 2, 3]), (2, [3, 4])]:
        board = TensorBoard(tmp_path, start)
        for batch in batches:
            board({"batch": batch, "tokens": 10, "time_s": 0.1, "loss": 10.0 * start + batch})
        board({"batch": batches[-1], "tokens": 10, "time_s": 0.1, "validation_loss": 2.0})
        board.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "validation/loss"]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 23), (4, 24)]


def test_a_run_that_starts_over_has_every_step_once_in_tensorboard(tmp_path):
    """Killed before its first checkpoint: what it wrote is purged, the validation before the first batch too."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for shift in (0, 10):
        board = TensorBoard(tmp_path / "tensorboard", 0)
        board({"batch": 0, "tokens": 0, "time_s": 0.1, "validation_loss": 5.0 + shift})
        for batch in (1, 2):
            board({"batch": batch, "tokens": 10, "time_s": 0.1, "loss": float(batch + shift)})
        board.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 11), (2, 12)]
    assert [(e.step, e.value) for e in events.Scalars("validation/loss")] == [(0, 15)]


def test_a_run_folder_is_one_run_of_wandb(tmp_path, monkeypatch):
    composer = pytest.importorskip("composer.loggers")
    made = []
    monkeypatch.setattr(composer, "WandBLogger", lambda name, init_kwargs: made.append(init_kwargs))
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    for _ in range(2):
        loggers.composer_loggers(["wandb"], "tiny", tmp_path)
    assert made[0] == made[1]
    assert made[0]["resume"] == "allow"
    assert json.loads((tmp_path / "loggers.json").read_text()) == {"wandb": made[0]["id"]}
    (tmp_path / "other").mkdir()
    loggers.composer_loggers(["wandb"], "tiny", tmp_path / "other")
    assert made[2]["id"] != made[0]["id"]
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-user")
    loggers.composer_loggers(["wandb"], "tiny", tmp_path)
    assert "id" not in made[3]


class Server:
    """In place of Composer's MLFlowLogger: knows the runs of one server."""

    known = ["other"]

    def __init__(self, **settings):
        self.settings = settings

    def _start_mlflow_run(self, state):
        wanted = os.environ.get("MLFLOW_RUN_ID")
        if wanted is not None and wanted not in self.known:
            raise RuntimeError(f"Run '{wanted}' not found")
        self._run_id = wanted or f"run{len(self.known)}"
        self.known.append(self._run_id)


def test_a_run_folder_is_one_run_of_mlflow(tmp_path, monkeypatch):
    composer = pytest.importorskip("composer.loggers")
    monkeypatch.setattr(composer, "MLFlowLogger", Server)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)

    def session():
        (logger,) = loggers.composer_loggers(["mlflow"], "tiny", tmp_path)
        logger._start_mlflow_run(None)
        assert "MLFLOW_RUN_ID" not in os.environ
        return logger._run_id

    assert session() == session() == "run1"
    (tmp_path / "loggers.json").write_text('{"mlflow": "gone"}')
    with pytest.raises(
        ZooError, match=r"loggers\.json: MLflow cannot go on with run gone: .*not found; remove the file"
    ):
        session()


def test_a_logger_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    loggers.check_installed(["jsonl", "tensorboard"])
    with pytest.raises(RecipeError, match=r"train\.loggers: wandb is not installed; to install it: .* .wandb>="):
        loggers.check_installed(["wandb"])


def show(terminal):
    out = io.StringIO()
    screen = Screen(console=Console(file=out, force_terminal=terminal, width=100, highlight=False, soft_wrap=True))
    plan = Plan.make(TrainConfig(duration="40ba", batch_size=1), EvalConfig(), 16, 64)
    screen.start(plan, 0)
    for batch in range(1, 41):
        screen({"batch": batch, "loss": 2.5, "lr": 1e-3, "tokens_per_s": 12345.6})
    screen({"batch": 40, "validation_loss": 2.0, "validation_bits_per_byte": 2.885})
    screen.close()
    return out.getvalue()


def test_a_terminal_sees_loss_and_speed_and_a_pipe_gets_plain_lines():
    live = show(terminal=True)
    assert "12,346 tokens/s" in live
    assert "loss 2.5000" in live
    piped = show(terminal=False)
    assert "\r" not in piped
    assert "\x1b" not in piped
    lines = piped.splitlines()
    assert len(lines) == 21
    assert lines[0] == "batch  2/40  loss 2.5000  lr 1.00e-03  12,346 tokens/s"
    assert lines[-1] == "validation after batch 40: loss 2.0000, 2.885 bits per byte"


def test_times_in_words():
    assert [as_time(s) for s in (0.4, 59.6, 3600, 3725)] == ["0 s", "1 min 0 s", "1 h 0 min 0 s", "1 h 2 min 5 s"]
