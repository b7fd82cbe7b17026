"""Evaluation tasks while several processes train: rows are divided, and each process ends with the scores of all."""

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo.data import prepare
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.registry import make_tasks
from zoo.evaluation.task import Choice, Chosen
from zoo.model import build_model
from zoo.training import scores
from zoo.training.callbacks import NonFinite
from zoo.training.composer_model import LanguageModel

TASKS = [
    {"task": "mqar", "lengths": [24], "pairs": [2, 4], "vocab_size": 64, "rows": 5},
    {"task": "niah_single_1", "lengths": [400], "rows": 3, "generate": False},
    {"task": "endings", "rows": 7},
    {"task": "endings", "rows": 1, "seed": 1},
    {"task": "loss_by_position", "lengths": [32, 48], "rows": 3},
]
GENERATING = {"task": "niah_single_1", "lengths": [400], "rows": 3, "depths": 3}


class Together:
    """Composer's `dist` for threads that stand for processes; `call` is where all of them must be at once."""

    def __init__(self, world: int):
        self.world, self._local, self._slots = world, threading.local(), [None] * world
        self._barrier = threading.Barrier(world, timeout=60)

    def enter(self, rank: int) -> None:
        self._local.rank = rank

    def get_world_size(self) -> int:
        return self.world

    def get_global_rank(self) -> int:
        return self._local.rank

    def all_gather_object(self, value) -> list:
        self._slots[self._local.rank] = value
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def all_reduce(self, tensor, reduce_operation: str) -> None:
        assert reduce_operation == "MAX"
        tensor.fill_(max(self.all_gather_object(int(tensor))))

    def call(self, name: str) -> None:
        names = self.all_gather_object(name)
        assert set(names) == {name}, names


@pytest.fixture
def parts(recipe, monkeypatch):
    """(model, decoder, prepared) of the tiny recipe with room for a needle, and the plugin's task."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    found = recipe("plugins=[zoo_endings]", "model.max_seq_len=512", "data.seq_len=32")
    settings = {"max_seq_len": 512, "vocab_size": found.model.vocab_size, "seed": found.seed}
    decoder = build_model(found)
    return LanguageModel(decoder), decoder, prepare(found.data, quiet=True, **settings)


def scored(parts, monkeypatch, tasks, world: int, sharded: bool, stopped=lambda: False) -> list[dict]:
    """What each of `world` processes writes; calls of sharded weights must be made by all of them at once."""
    together, records, failed = Together(world), [None] * world, []
    monkeypatch.setattr(scores, "dist", together)

    def process(rank: int) -> None:
        together.enter(rank)
        model, decoder, prepared = parts
        subject = scores.TrainingSubject(model, decoder, prepared, "fp32", sharded)
        whole = subject._module

        def gathered(*arguments, **settings):
            if sharded:
                together.call("gather weights")
            return whole(*arguments, **settings)

        subject._module = gathered
        try:
            write = lambda state, logger, record: records.__setitem__(rank, record)  # noqa: E731
            made = scores.TaskScores(
                subject, make_tasks(tasks), lambda batch: True, stopped, write, last_good=lambda: "Go on."
            )
            made.score(SimpleNamespace(timestamp=SimpleNamespace(batch=3)), None)
        except BaseException as error:
            failed.append(error)
            together._barrier.abort()

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return records


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("world", [2, 4])
def test_every_process_ends_with_the_scores_of_one(parts, monkeypatch, world, sharded):
    """Rows that do not divide by the processes, a task of one row, and options of many lengths."""
    [alone] = scored(parts, monkeypatch, TASKS, 1, sharded)
    shared = scored(parts, monkeypatch, TASKS, world, sharded)
    assert all(record == shared[0] for record in shared)
    assert shared[0].keys() == alone.keys()
    assert shared[0] == pytest.approx(alone, rel=1e-5, abs=1e-7)
    assert len({name.split("/")[1] for name in alone}) == len(TASKS)


def test_each_process_scores_its_share_of_the_rows(parts, monkeypatch):
    asked = []
    monkeypatch.setattr(scores, "answer", lambda s, examples, *rest: asked.append(len(examples)) or _zeros(examples))
    scored(parts, monkeypatch, [{"task": "endings", "rows": 7}], 4, sharded=True)
    assert sorted(asked) == [1, 2, 2, 2]


def test_a_signal_to_one_process_ends_the_scoring_of_all_before_the_next_task(parts, monkeypatch):
    asked, plain = [], scores.answer
    monkeypatch.setattr(scores, "answer", lambda *asks: asked.append(1) or plain(*asks))
    told = lambda: scores.dist.get_global_rank() == 1 and bool(asked)  # noqa: E731
    assert scored(parts, monkeypatch, TASKS, 2, sharded=True, stopped=told) == [None, None]
    assert len(asked) == 2


def test_a_likelihood_that_is_no_number_ends_every_process_with_its_reason(parts, monkeypatch):
    def broken(subject, examples, *rest):
        logs = (math.nan if scores.dist.get_global_rank() == 1 else 0.0, 0.0, 0.0)
        return [Chosen(logs, (False,) * 3, (1,) * 3) for _ in examples]

    monkeypatch.setattr(scores, "answer", broken)
    why = r"batch 3: the log-likelihood of a row of endings\(rows=4\) is nan; training stopped\. Go on\. A lower"
    with pytest.raises(NonFinite, match=why):
        scored(parts, monkeypatch, [{"task": "endings", "rows": 4}], 2, sharded=False)


def _zeros(examples):
    return [Chosen((0.0,) * 3, (False,) * 3, (1,) * 3) for _ in examples]


def test_a_row_that_cannot_be_given_is_refused_before_training(parts, monkeypatch):
    model, decoder, prepared = parts
    monkeypatch.setattr(scores, "dist", Together(1))
    subject = scores.TrainingSubject(model, decoder, prepared, "fp32")
    [task] = make_tasks(["endings"])
    long = [Choice((("a", "b" * 600), ("a", "c")), 0)]
    monkeypatch.setattr(type(task), "examples", lambda self, facts: long)
    with pytest.raises(EvaluationError, match="endings: row 0: an option has 600 tokens, and the model takes 512"):
        scores.TaskScores(subject, [task], lambda batch: True, lambda: False, lambda *record: None)


def test_sharded_weights_refuse_to_generate_before_training(parts, monkeypatch):
    monkeypatch.setattr(scores, "dist", Together(1))
    subject = scores.TrainingSubject(*parts, "fp32", sharded=True)
    with pytest.raises(EvaluationError, match=r"niah_single_1: generates, which sharded weights cannot; set generate"):
        scores.TaskScores(subject, make_tasks([GENERATING]), lambda b: True, lambda: False, lambda *record: None)


def _of_command(recipe_file, run, environment, tasks, *more) -> list[dict]:
    """The task records of a training by `zoo train`."""
    settings = ["plugins=[zoo_endings]", "model.max_seq_len=512", "data.seq_len=32", "train.duration=4ba"]
    settings += ["eval.every=2ba", f"eval.tasks={json.dumps(tasks)}"]
    sets = [part for each in settings for part in ("--set", each)]
    arguments = [sys.executable, "-m", "zoo", "train", str(recipe_file), "--run-dir", str(run), *sets, *more]
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), environment.get("PYTHONPATH", "")]))
    environment = environment | {"PYTHONPATH": paths}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if name.startswith("task/")}
        for record in records
        if any(name.startswith("task/") for name in record)
    ]


@pytest.mark.long
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_two_processes_of_zoo_train_score_as_one(recipe_file, tmp_path, environment, parallelism):
    """The weights of two processes differ in the last bits from those of one, so the scores do too."""
    tasks = [*TASKS, GENERATING] if parallelism == "ddp" else TASKS
    one = _of_command(recipe_file, tmp_path / "one", environment, tasks)
    environment.pop("OMP_NUM_THREADS")
    two = _of_command(
        recipe_file, tmp_path / "two", environment, tasks, "--devices", "2", "--set", f"train.parallelism={parallelism}"
    )
    assert len(one) == len(two) == 2
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
