"""The callbacks of a training, alone; test_train.py sees them at work together."""

import datetime
from functools import partial
from types import SimpleNamespace

import pytest

from zoo.training import callbacks

SILENT = SimpleNamespace(log_metrics=lambda numbers: None)


def clip_of(norm):
    return SimpleNamespace(norm=norm)


def after_batch(number, seconds, tokens=100):
    """What the engine knows after a batch of so many tokens."""
    wct = datetime.timedelta(seconds=seconds)
    return SimpleNamespace(
        timestamp=SimpleNamespace(batch=number, token=tokens * number, batch_wct=wct, total_wct=wct),
        max_duration=None,
        previous_timestamp=SimpleNamespace(token=tokens * (number - 1)),
        total_loss_dict={"loss/train/total": 2.0},
        optimizers=[SimpleNamespace(param_groups=[{"lr": 1e-3}])],
    )


def speeds(seconds, from_batch=0):
    """tokens_per_s after each batch of a session, and mfu."""
    records = []
    metrics = callbacks.Metrics(clip_of(1.0), [records.append], mfu_per_token=0.001)
    for number, took in enumerate(seconds, start=from_batch + 1):
        metrics.batch_end(after_batch(number, took), SILENT)
    assert [r["mfu"] for r in records] == pytest.approx([r["tokens_per_s"] * 0.001 for r in records])
    return [r["tokens_per_s"] for r in records]


@pytest.mark.parametrize("from_batch", [0, 40])
def test_the_first_batch_of_a_session_which_compiles_slows_down_no_other_record(from_batch):
    assert speeds([50.0, 2.0, 1.0, 1.0], from_batch) == pytest.approx([2.0, 50.0, 200 / 3, 75.0])


def test_the_speed_is_that_of_the_latest_batches():
    assert speeds([9.0] * 30 + [1.0] * callbacks.Metrics.WINDOW)[-1] == pytest.approx(100.0)


class Late(callbacks.Numbers):
    """Numbers that are on their way from a GPU."""

    def __init__(self, loss, **others):
        super().__init__(loss, **others)
        self.event = self

    def synchronize(self):
        pass


def test_a_record_waits_for_the_next_batch_and_no_longer_than_to_a_checkpoint(monkeypatch):
    monkeypatch.setattr(callbacks, "Numbers", Late)
    found = []
    metrics = callbacks.Metrics(clip_of(1.0), [lambda r: found.append(r["batch"])], None, saves={3}.__contains__)
    for number, expected in [(1, []), (2, [1]), (3, [1, 2])]:
        metrics.batch_end(after_batch(number, 1.0), SILENT)
        assert found == expected
    metrics.batch_checkpoint(after_batch(3, 1.0), SILENT)
    assert found == [1, 2, 3]


def test_a_late_number_that_is_not_finite_still_names_its_batch(monkeypatch):
    monkeypatch.setattr(callbacks, "Numbers", Late)
    written = []

    check = partial(callbacks.refuse_non_finite, last_good=lambda: "no checkpoint.")
    metrics = callbacks.Metrics(clip_of(float("nan")), [written.append], None, check=check)
    metrics.batch_end(after_batch(7, 1.0), SILENT)
    with pytest.raises(callbacks.NonFinite, match="batch 7: the gradient norm is nan"):
        metrics.batch_end(after_batch(8, 1.0), SILENT)
    assert written == []


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_not_finite_stops_the_training(loss):
    """After the last batch nothing else shows it: the run would be complete, with a summary that is no JSON."""
    written = []
    check = partial(callbacks.refuse_non_finite, last_good=lambda: "no checkpoint.")
    metrics = callbacks.Metrics(clip_of(1.0), [written.append], None, check=check)
    state = after_batch(7, 1.0)
    state.eval_metrics = {"validation": {"loss": SimpleNamespace(compute=lambda: loss)}}
    with pytest.raises(callbacks.NonFinite, match=f"batch 7: the validation loss is {loss}; training stopped"):
        metrics.eval_end(state, SILENT)
    assert written == []


def test_what_the_model_counted_joins_the_record_of_its_batch():
    records, counted = [], iter([{"added_loss": 0.5, "expert_load_max": 2.0}, {"added_loss": 0.25}])
    metrics = callbacks.Metrics(clip_of(1.0), [records.append], None, after_batch=lambda: next(counted))
    for number in (1, 2):
        metrics.batch_end(after_batch(number, 1.0), SILENT)
    assert [record["added_loss"] for record in records] == [0.5, 0.25]
    assert records[0]["expert_load_max"] == 2.0
    assert [record["loss"] for record in records] == [2.0, 2.0]
