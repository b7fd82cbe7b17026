"""metrics.jsonl and the messages of a training."""

import io
import json

import pytest
from rich.console import Console

from zoo.errors import RecipeError, ZooError
from zoo.training import loggers
from zoo.training.config import EvalConfig, TrainConfig
from zoo.training.loggers import JsonLines, TensorBoard, read_metrics
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


def test_a_logger_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    loggers.check_installed(["jsonl", "tensorboard"])
    with pytest.raises(RecipeError, match=r"train\.loggers: wandb is not installed.*attention-zoo\[wandb\]"):
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
