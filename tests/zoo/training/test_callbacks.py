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

    def __init__(self, mark, loss, **others):
        super().__init__(mark, loss, **others)
        self.late = True


class Gpu:
    """A GPU and Python, in seconds: Python is at `now`, and the GPU will be done with its work at `done`."""

    def __init__(self):
        self.now = self.done = 0.0

    def launch(self, host_s, device_s):
        """Work that takes Python host_s to start and then the GPU device_s."""
        self.now += host_s
        self.done = max(self.done, self.now) + device_s

    def wait(self):
        self.now = max(self.now, self.done)

    def mark(self):
        return Mark(self)


class Mark:
    """An event of CUDA on this GPU."""

    def __init__(self, gpu):
        self.gpu, self.at = gpu, max(gpu.now, gpu.done)

    def synchronize(self):
        self.gpu.now = max(self.gpu.now, self.at)

    def elapsed_time(self, end):
        assert max(self.at, end.at) <= self.gpu.now, "CUDA: not ready"
        return (end.at - self.at) * 1000


class Session:
    """A training on that GPU, after a validation: the first batch waits (Composer's own step), later ones end early
    for Python."""

    def __init__(self, monkeypatch, from_batch=0):
        self.patch, self.gpu, self.records, self.number = monkeypatch, Gpu(), [], from_batch
        self.metrics = callbacks.Metrics(
            clip_of(1.0), [self.records.append], None, saves=lambda batch: True, mark=self.gpu.mark
        )
        self.state = after_batch(from_batch, 0.0)
        self.validation(device_s=5.0)
        self.gpu.now += 7.0
        self.metrics.fit_start(None, SILENT)
        self.batch(50.0, 1.0, wait=True)

    def batch(self, host_s, device_s, wait=False):
        start, self.number = self.gpu.now, self.number + 1
        self.gpu.launch(host_s, device_s)
        if wait:
            self.gpu.wait()
        self.state = after_batch(self.number, self.gpu.now - start)
        with self.patch.context() as patch:
            if not wait:
                patch.setattr(callbacks, "Numbers", Late)
            self.metrics.batch_end(self.state, SILENT)
        assert wait or self.gpu.now < self.gpu.done, "waits for the batch that was just launched"

    def validation(self, device_s):
        self.metrics.eval_start(self.state, SILENT)
        self.gpu.launch(0.1, device_s)
        self.gpu.wait()
        self.state.eval_metrics = {"validation": {}}
        self.metrics.eval_end(self.state, SILENT)

    def checkpoint(self, host_s):
        self.metrics.batch_checkpoint(self.state, SILENT)
        self.gpu.now += host_s

    def speeds(self):
        self.metrics.fit_end(self.state, SILENT)
        return [r["tokens_per_s"] for r in self.records if "tokens_per_s" in r]


@pytest.mark.parametrize("from_batch", [0, 40])
@pytest.mark.parametrize("host_s", [0.01, 3.0])
def test_the_speed_is_the_gpus_where_python_runs_ahead_of_it(from_batch, host_s, monkeypatch):
    """And Python's where the GPU waits for it, as for data; until it has work again a batch passes through both.
    The record of the first batch waits for no other.
    """
    session = Session(monkeypatch, from_batch)
    assert session.records[-1]["batch"] == from_batch + 1
    for _ in range(30):
        session.batch(host_s, 2.0)
    longer, shorter = max(host_s, 2.0), min(host_s, 2.0)
    expected = [100 * n / (n * longer + shorter) for n in range(1, 21)] + [100 / longer] * 10
    assert session.speeds() == pytest.approx([100 / 51, *expected])


def test_a_validation_counts_in_no_speed_and_a_checkpoint_does_as_on_a_cpu(monkeypatch):
    session = Session(monkeypatch)
    for _ in range(2):
        for _ in range(3):
            session.batch(0.0, 2.0)
        session.validation(device_s=1000.0)
    session.batch(0.0, 2.0)
    session.checkpoint(host_s=14.0)
    session.batch(0.0, 2.0)
    assert session.speeds()[1:] == pytest.approx([50.0] * 7 + [800 / 30])


def test_a_batch_that_captures_graphs_lasts_until_its_end_on_the_gpu(monkeypatch):
    session = Session(monkeypatch)
    session.batch(10.0, 1.0)
    for _ in range(25):
        session.batch(0.01, 1.0)
    found = session.speeds()
    assert found[1:4] == pytest.approx([100 / 11, 200 / 12, 300 / 13])
    assert found[20:22] == pytest.approx([2000 / 30, 100.0])


def test_without_a_gpu_the_speed_is_that_of_pythons_clock():
    """Which Composer stops in a validation."""
    records = []
    metrics = callbacks.Metrics(clip_of(1.0), [records.append], None)
    metrics.fit_start(None, SILENT)
    for number in (1, 2, 3):
        state = after_batch(number, 4.0)
        metrics.batch_end(state, SILENT)
        state.eval_metrics = {"validation": {}}
        metrics.eval_end(state, SILENT)
    assert [r["tokens_per_s"] for r in records if "tokens_per_s" in r] == [25.0] * 3


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
