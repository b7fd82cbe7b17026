"""The callbacks of a training, alone; test_train.py sees them at work together."""

import datetime
from types import SimpleNamespace

import pytest

from zoo.training import callbacks


def after_batch(number, seconds, tokens=100):
    """What the engine knows after a batch of so many tokens."""
    wct = datetime.timedelta(seconds=seconds)
    return SimpleNamespace(
        timestamp=SimpleNamespace(batch=number, token=tokens * number, batch_wct=wct, total_wct=wct),
        previous_timestamp=SimpleNamespace(token=tokens * (number - 1)),
        total_loss_dict={"loss/train/total": 2.0},
        optimizers=[SimpleNamespace(param_groups=[{"lr": 1e-3}])],
    )


def speeds(seconds, from_batch=0):
    """tokens_per_s after each batch of a session, and mfu."""
    records = []
    clip, silent = SimpleNamespace(norm=1.0), SimpleNamespace(log_metrics=lambda numbers: None)
    metrics = callbacks.Metrics(clip, [records.append], mfu_per_token=0.001)
    for number, took in enumerate(seconds, start=from_batch + 1):
        metrics.batch_end(after_batch(number, took), silent)
    assert [r["mfu"] for r in records] == pytest.approx([r["tokens_per_s"] * 0.001 for r in records])
    return [r["tokens_per_s"] for r in records]


@pytest.mark.parametrize("from_batch", [0, 40])
def test_the_first_batch_of_a_session_which_compiles_slows_down_no_other_record(from_batch):
    assert speeds([50.0, 2.0, 1.0, 1.0], from_batch) == pytest.approx([2.0, 50.0, 200 / 3, 75.0])


def test_the_speed_is_that_of_the_latest_batches():
    assert speeds([9.0] * 30 + [1.0] * callbacks.Metrics.WINDOW)[-1] == pytest.approx(100.0)
