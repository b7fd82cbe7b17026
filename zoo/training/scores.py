"""Evaluation tasks while a model trains: scored after the validations of `eval.every`, on every process together."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from composer import Callback
from composer.utils import dist

from zoo.evaluation.asking import answer
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.held_out import HeldOut
from zoo.evaluation.results import summarise
from zoo.evaluation.run import make_examples
from zoo.evaluation.subject import ZooSubject
from zoo.evaluation.task import Prompt, Row, Task


class TrainingSubject(ZooSubject):
    """The model that trains, asked through the module that training calls, so that sharded weights are gathered."""

    def __init__(self, model, decoder, prepared, precision: str):
        self._set(decoder, prepared.tokenizer, "the model in training")
        self._module, self._precision = model.summed_loss, precision
        self.data = prepared.config
        self.held_out = HeldOut.of_prepared(prepared)

    @torch.no_grad()
    def logits(self, tokens_BT, row_N, position_N, document_starts_BT=None):
        batch = {"input_ids": tokens_BT, "document_starts": document_starts_BT}
        with self._autocast():
            return self._module(batch, places=(row_N, position_N)).float()

    def greedy(self, prompts, max_tokens):
        with self._autocast():
            return super().greedy(prompts, max_tokens)

    def _autocast(self):
        if self._precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


class TaskScores(Callback):
    """Score tasks after each batch that is validated, and hand the record to the writers.

    The record has batch, tokens, time_s and, for each task and metric, task/LABEL/METRIC and .../stderr. Processes
    share the rows; where weights are sharded each process scores all of them, since all must make the same calls.
    stopped: asked between batches of rows; once it is true the scores are left out.  beat: called as often, for the
    watchdog.
    """

    def __init__(
        self,
        subject: ZooSubject,
        tasks: Sequence[Task],
        due: Callable[[int], bool],
        stopped: Callable[[], bool],
        write: Callable[[Any, Any, dict], None],
        sharded: bool,
        beat: Callable[[str], object] = lambda what: None,
    ):
        self._beat = beat
        self._subject, self._due, self._stopped, self._write, self._sharded = subject, due, stopped, write, sharded
        self._tasks = [(task, make_examples(task, subject)) for task in tasks]
        for task, examples in self._tasks:
            if sharded and any(isinstance(e, Prompt) and e.max_tokens for e in examples):
                raise EvaluationError(f"{task.task}: generates, which sharded weights cannot; set generate: false")

    def batch_end(self, state, logger) -> None:
        if self._due(int(state.timestamp.batch)):
            self.score(state, logger)

    def score(self, state, logger) -> None:
        """Score every task now; a stop leaves no record."""
        record: dict[str, float] = {}
        training = self._subject.model.training
        self._subject.model.eval()
        try:
            for task, examples in self._tasks:
                record |= self._scores(task, examples)
        except _Stopped:
            return
        finally:
            self._subject.model.train(training)
        self._write(state, logger, record)

    def _scores(self, task: Task, examples: list) -> dict[str, float]:
        world = 1 if self._sharded else dist.get_world_size()
        mine = range(dist.get_global_rank() if world > 1 else 0, len(examples), world)
        answers = answer(self._subject, [examples[i] for i in mine], self._go_on)
        rows = {i: task.score(examples[i], reply) for i, reply in zip(mine, answers, strict=True)}
        if world > 1:
            rows = {i: row for part in dist.all_gather_object(rows) for i, row in part.items()}
        return _as_record(task, examples, [rows[i] for i in range(len(examples))])

    def _go_on(self, rows: int) -> None:
        self._beat("rows of an evaluation task")
        # With several processes all stop after the task: one that left alone would keep the others waiting.
        if dist.get_world_size() == 1 and self._stopped():
            raise _Stopped


class _Stopped(Exception):
    """A signal came while tasks were scored."""


def _as_record(task: Task, examples: list, rows: list[Row]) -> dict[str, float]:
    metrics, _ = summarise(task, examples, rows)
    found = {}
    for name, numbers in metrics.items():
        found[f"task/{task.label}/{name}"] = numbers["value"]
        if numbers["stderr"] is not None:
            found[f"task/{task.label}/{name}/stderr"] = numbers["stderr"]
    return found


class StopAtAccuracy(Callback):
    """End the training after a validation whose accuracy is at least `share`; `reached` says so."""

    def __init__(self, share: float):
        self.share, self.reached = share, False

    def eval_end(self, state, logger) -> None:
        found = float(state.eval_metrics["validation"]["accuracy"].compute())
        if found >= self.share:
            self.reached = True
            state.stop_training()
