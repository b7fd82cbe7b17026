"""CUDA graphs in training: the same losses, gradients and weights as Composer's own step, bit for bit."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.errors import RecipeError, ZooError
from zoo.runs.metrics import read_metrics
from zoo.training import callbacks, engine, graphs, train
from zoo.training.config import TrainConfig
from zoo.training.device import resolve_workers, why_no_graph

pytestmark = pytest.mark.filterwarnings("ignore:.*leaked shared_memory:UserWarning")
RECIPES = Path(__file__).parents[3] / "recipes" / "tiny"


class Uncaptured(graphs.MicroBatchGraph):
    """What would be captured, computed anew at each replay: for machines without a GPU."""

    def capture(self, trainer, pool):
        self.trainer = trainer

    def replay(self, part, share):
        if self.first:
            graphs._forget_gradients(self.trainer)
        self.fill(part, share)
        self.compute(self.trainer)


class Replayed(graphs.BatchStep):
    def _capture(self, trainer, keys, parts):
        for rows, first in keys:
            self._graphs[rows, first] = Uncaptured(parts[rows], first, self._total)
            self._graphs[rows, first].capture(trainer, None)

    def _too_large(self):
        return None


def records(run):
    wanted = ("batch", "loss", "grad_norm", "lr", "validation_loss")
    return [[r.get(name) for name in wanted] for r in read_metrics(run / "metrics.jsonl")]


def assert_same(run, other):
    assert records(run) == records(other)
    found, expected = (load_file(folder / "model.safetensors") for folder in (run, other))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "graph"), [(Replayed, "on"), (graphs.BatchStep, "off")], ids=["graphs", "plain"])
@pytest.mark.parametrize("micro_batch", [4, 3])
def test_the_batch_without_waits_is_composers(make, graph, micro_batch, recipe, tmp_path, monkeypatch):
    """3 does not divide the rows of a batch: there is a graph for the rest."""
    changed, step = recipe(f"train.micro_batch={micro_batch}", "train.duration=5ba"), make(graph)
    train(changed, tmp_path / "plain")
    monkeypatch.setattr(engine.Engine, "_make_step", lambda self: step)
    train(changed, tmp_path / "graphs")
    assert step._total is not None
    assert len(step._graphs) == (0 if graph == "off" else 1 if micro_batch == 4 else 2)
    assert_same(tmp_path / "graphs", tmp_path / "plain")


@pytest.mark.slow
def test_what_cannot_be_captured_is_said_or_refused(recipe, tmp_path, monkeypatch):
    class Failing(Replayed):
        def _capture(self, trainer, keys, parts):
            try:
                raise RuntimeError("this op waits\nfor the device")
            finally:
                raise RuntimeError("the capture failed")  # as leaving a broken capture does

    for graph in ("auto", "on"):
        monkeypatch.setattr(engine.Engine, "_make_step", lambda self, graph=graph: Failing(graph))
        changed = recipe("train.duration=3ba")
        if graph == "on":
            with pytest.raises(ZooError, match="cannot be on: the step cannot be captured: this op waits; auto trains"):
                train(changed, tmp_path / graph)
        else:
            train(changed, tmp_path / graph)
            said = "cuda_graph: not used: the step cannot be captured: this op waits"
            assert said in (tmp_path / graph / "log.txt").read_text()


def test_a_batch_waits_for_the_gpu_only_where_training_does_anyway(monkeypatch):
    """There Composer's clock of the training has to show what the GPU took."""
    waits, loss = [], SimpleNamespace(is_cuda=True)
    trainer = SimpleNamespace(first_train_batch_complete=True, waits_after={3, 6}.__contains__)
    trainer.step = SimpleNamespace(run=lambda trainer: loss)
    for done in range(6):
        trainer.state = SimpleNamespace(timestamp=SimpleNamespace(batch=done))
        stream = SimpleNamespace(synchronize=lambda done=done: waits.append(done + 1))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda stream=stream: stream)
        assert graphs.StepTrainer._train_batch(trainer, False) is None
    assert waits == [3, 6]


def test_training_waits_for_validations_checkpoints_and_signals():
    plan = SimpleNamespace(saves={4}.__contains__, validates={6}.__contains__)
    requests = SimpleNamespace(received=None)
    setup = SimpleNamespace(plan=plan)
    for evaluator, expected in [(object(), [4, 6]), (None, [4])]:
        self = SimpleNamespace(setup=setup, requests=requests, evaluator=evaluator)
        assert [n for n in range(1, 8) if engine.Engine._waits_after(self, n)] == expected
    requests.received = 15
    assert engine.Engine._waits_after(self, 1)


def test_reasons():
    auto = TrainConfig()
    assert why_no_graph(auto, True, 1) is None
    assert why_no_graph(auto, False, 1) == "there is no CUDA GPU"
    assert why_no_graph(auto, True, 2) == "2 processes exchange gradients during the backward pass"
    assert "random state" in why_no_graph(TrainConfig(activation_checkpointing=True), True, 1)
    assert why_no_graph(TrainConfig(cuda_graph="off"), True, 1) == "the recipe says off"


def test_readers_are_several_where_a_gpu_waits_for_them(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    auto = TrainConfig()
    assert resolve_workers(auto, "train", True, 1) == 4
    assert [
        resolve_workers(auto, *where) for where in (("validation", True, 1), ("train", False, 1), ("train", True, 8))
    ] == [1] * 3
    assert resolve_workers(TrainConfig(workers=0), "train", True, 1) == 0
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    assert resolve_workers(auto, "train", True, 1) == 1
    with pytest.raises(ValueError, match="must be a whole number from 0 to 256, or auto; found 257"):
        TrainConfig(workers=257)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_on_is_refused_where_it_cannot_be(recipe, tmp_path):
    with pytest.raises(
        RecipeError, match=r"train\.cuda_graph: cannot be on: there is no CUDA GPU; auto trains without a graph"
    ):
        train(recipe("train.cuda_graph=on"), tmp_path / "run")


def test_the_reason_is_in_the_log(recipe, tmp_path):
    train(recipe("train.duration=3ba", "train.cuda_graph=off"), tmp_path / "run")
    assert "cuda_graph: not used: the recipe says off" in (tmp_path / "run" / "log.txt").read_text()


def test_compile_is_refused_with_what_to_do_instead(recipe):
    with pytest.raises(RecipeError, match=r"train\.compile: was removed: .* Remove the key"):
        recipe("train.compile=true")
    assert "compile" not in recipe("train.compile=false").dump()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["full", "nsa", "ansa", "mla", "packed"])
@pytest.mark.parametrize("micro_batch", [16, 6])
def test_gpu_the_same_bits(name, micro_batch, tmp_path):
    """Composer's own step, without graphs, and ours with them; 6 leaves rows over."""
    overrides = ["train.duration=8ba", "train.schedule.warmup=2ba", f"train.micro_batch={micro_batch}"]
    overrides += ["train.checkpoint.every=4ba", "train.workers=0", "eval={every: 4ba, batches: 2}"]
    overrides += ["model.document_mask=true"] if name == "packed" else []
    path = RECIPES / f"{'ansa' if name == 'packed' else name}.yaml"
    for wanted in ("off", "on"):
        train(zoo.load_recipe(path, overrides=[*overrides, f"train.cuda_graph={wanted}"]), tmp_path / wanted)
    assert "captured" in (tmp_path / "on" / "log.txt").read_text()
    assert_same(tmp_path / "on", tmp_path / "off")


@pytest.mark.gpu
def test_gpu_a_resumed_run_is_the_same_bits(tmp_path):
    overrides = ["train.duration=6ba", "train.schedule.warmup=2ba", "train.checkpoint={every: 3ba, keep: all}"]
    overrides += ["train.cuda_graph=on", "train.workers=0"]
    recipe = zoo.load_recipe(RECIPES / "ansa.yaml", overrides=overrides)
    train(recipe, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for name in ("model.safetensors", "model.yaml", "summary.json", "checkpoints/ep0-ba6-rank0.pt"):
        (tmp_path / "resumed" / name).unlink()
    train(recipe, tmp_path / "resumed")
    assert "resumes after batch 3" in (tmp_path / "resumed" / "log.txt").read_text()
    assert_same(tmp_path / "resumed", tmp_path / "whole")


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [None, "off", "on"])
def test_gpu_the_printed_speed_is_that_of_the_gpu(graph, tmp_path, monkeypatch):
    """On a GPU that is slower than Python.  graph None: Composer's own step, where Python waits for it."""
    seconds, measured = [0.0], {}  # seconds: without validations, since the end of the first batch
    monkeypatch.setattr(engine.Engine, "_make_step", lambda self: graph and graphs.BatchStep(graph))

    class Slow(callbacks.ClipGradients):
        def after_train_batch(self, state, logger):
            torch.cuda._sleep(400_000_000)  # about 0.2 s
            super().after_train_batch(state, logger)

    class Measured(callbacks.Metrics):
        """Waits for the GPU after a few batches only, so that Python is ahead of it in between."""

        def batch_end(self, state, logger):
            super().batch_end(state, logger)
            batch = int(state.timestamp.batch)
            if batch in (1, 2, 4, 8):
                torch.cuda.synchronize()
                now = time.perf_counter()
                if batch > 1:
                    seconds[0] += now - self.since
                    measured[batch] = seconds[0]
                self.since = now

        def eval_end(self, state, logger):
            super().eval_end(state, logger)
            torch.cuda.synchronize()
            self.since = time.perf_counter()

    monkeypatch.setattr(engine, "ClipGradients", Slow)
    monkeypatch.setattr(engine, "Metrics", Measured)
    overrides = ["train.duration=8ba", "train.schedule.warmup=2ba", "train.micro_batch=16", "train.workers=0"]
    overrides += ["train.checkpoint.every=4ba", "eval={every: 4ba, batches: 2}"]
    train(zoo.load_recipe(RECIPES / "full.yaml", overrides=overrides), tmp_path / "run")
    found = {r["batch"]: r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in r}
    assert sorted(measured) == [2, 4, 8]
    for batch, took in measured.items():
        expected = (found[batch]["tokens"] - found[1]["tokens"]) / took
        assert found[batch]["tokens_per_s"] == pytest.approx(expected, rel=0.1)
    for batch in (4, 8):  # after which there is a validation
        assert found[batch]["time_s"] - found[1]["time_s"] == pytest.approx(measured[batch], rel=0.1)
