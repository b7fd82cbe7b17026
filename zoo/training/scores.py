"""Evaluation tasks while a model trains: scored after the validations of `eval.every`, on every process together."""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from composer import Callback
from composer.utils import dist

from zoo.evaluation.asking import answer, plan
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.held_out import HeldOut
from zoo.evaluation.memory import Budget
from zoo.evaluation.own_tasks import scored
from zoo.evaluation.results import summarise
from zoo.evaluation.run import make_examples, not_finite
from zoo.evaluation.subject import Subject, ZooSubject
from zoo.evaluation.task import Prompt, Row, Task
from zoo.training.callbacks import refuse_non_finite

WAITING_TOKENS = 16  # of the row that a process without rows calls the model with


class TrainingSubject(ZooSubject):
    """The model that trains, asked through the module that training calls, so that sharded weights are gathered.

    sharded: every call of the module is one that all processes make together, whatever rows each of them has.
    """

    def __init__(self, model, decoder, prepared, precision: str, sharded: bool = False):
        self._set(decoder, prepared.tokenizer, "the model in training")
        self._module, self._precision, self.sharded = model.summed_loss, precision, sharded
        self.repeats = not sharded  # the other processes do not make a call again
        self.data = prepared.config
        self.held_out = HeldOut.of_prepared(prepared)

    def logits(self, tokens_BT, row_N, position_N, document_starts_BT=None):
        if self.sharded:
            self._any_asks(True)
        return self._logits(tokens_BT, row_N, position_N, document_starts_BT)

    def logits_parts(self, tokens_BT, row_N, position_N, document_starts_BT=None, *, at_once):
        if self.sharded:  # the head is gathered with the rest, by a call of the whole module
            parts = Subject.logits_parts(self, tokens_BT, row_N, position_N, document_starts_BT, at_once=at_once)
        else:
            parts = super().logits_parts(tokens_BT, row_N, position_N, document_starts_BT, at_once=at_once)
        yield from parts

    def _hidden(self, tokens_BT, row_N, position_N, document_starts_BT):
        with self._autocast():
            return super()._hidden(tokens_BT, row_N, position_N, document_starts_BT)

    def head(self, hidden_NC):
        with self._autocast():
            return super().head(hidden_NC)

    @property
    def has_cache(self) -> bool:
        return not self.sharded and super().has_cache

    def append(self, tokens_BT, cache, n_new_B):
        with self._autocast():
            return super().append(tokens_BT, cache, n_new_B)

    def wait_for_others(self) -> None:
        """Return once every process has had its answers; until then take part in the calls that the others make."""
        if not self.sharded:
            return
        tokens_1T = torch.zeros(1, min(self.max_len, WAITING_TOKENS), dtype=torch.int64, device=self.device)
        place_1 = torch.zeros(1, dtype=torch.int64, device=self.device)
        while self._any_asks(False):
            self._logits(tokens_1T, place_1, place_1)

    @torch.no_grad()
    def _logits(self, tokens_BT, row_N, position_N, document_starts_BT=None):
        batch = {"input_ids": tokens_BT, "document_starts": document_starts_BT}
        with self._autocast():
            return self._module(batch, places=(row_N, position_N)).float()

    def _any_asks(self, asks: bool) -> bool:
        """Whether any process has a call of its own to make; all of them must ask this at once."""
        found = torch.tensor(int(asks), device=self.device)
        dist.all_reduce(found, reduce_operation="MAX")
        return bool(found)

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
    share the rows, and each ends with the scores of all.
    stopped: asked between batches of rows, or between tasks where there are several processes; once it is true the
    scores are left out.  beat: called as often, for the watchdog.  last_good: says where a training goes on that ends
    because a likelihood is not finite, as `refuse_non_finite` asks.  say: told when memory ran out and rows are scored
    in smaller batches.
    """

    def __init__(
        self,
        subject: TrainingSubject,
        tasks: Sequence[Task],
        due: Callable[[int], bool],
        stopped: Callable[[], bool],
        write: Callable[[Any, Any, dict], None],
        beat: Callable[[str], object] = lambda what: None,
        last_good: Callable[[], str] = lambda: "",
        say: Callable[[str], object] = warnings.warn,
    ):
        self._beat, self._last_good, self._say = beat, last_good, say
        self._subject, self._due, self._stopped, self._write = subject, due, stopped, write
        self._tasks = [(task, make_examples(task, subject)) for task in tasks]
        for task, examples in self._tasks:
            self._check(task, examples)

    def _check(self, task: Task, examples: list) -> None:
        """Raise EvaluationError, before anything is trained, for a row that this model cannot be given."""
        if self._subject.sharded and any(isinstance(e, Prompt) and e.max_tokens for e in examples):
            raise EvaluationError(f"{task.task}: generates, which sharded weights cannot; set generate: false")
        try:
            plan(self._subject, examples)
        except EvaluationError as error:
            raise EvaluationError(f"{task.task}: {error}") from error

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
                if self._all_stop():
                    return
                record |= self._scores(task, examples, state)
        except _Stopped:
            return
        finally:
            self._subject.model.train(training)
        self._write(state, logger, record)

    def _scores(self, task: Task, examples: list, state) -> dict[str, float]:
        world = dist.get_world_size()
        mine = range(dist.get_global_rank(), len(examples), world)
        budget = Budget.of(self._subject, self._say)
        answers = answer(self._subject, [examples[i] for i in mine], self._go_on, budget)
        self._subject.wait_for_others()
        found = self._scored(task, [examples[i] for i in mine], answers)
        parts = dist.all_gather_object(found) if world > 1 else [found]
        for _, wrong, problem in parts:  # all processes raise it: none waits for another
            if wrong is not None:
                numbers = {f"log-likelihood of a row of {task.label}": wrong}
                refuse_non_finite(int(state.timestamp.batch), numbers, self._last_good)
            if problem is not None:
                raise EvaluationError(problem)
        rows = {rank + world * n: row for rank, (part, *_) in enumerate(parts) for n, row in enumerate(part)}
        return _as_record(task, examples, [rows[i] for i in range(len(examples))])

    @staticmethod
    def _scored(task: Task, examples: list, answers: list) -> tuple[list[Row], float | None, str | None]:
        """(rows, a likelihood that is not finite, what is wrong with a task of another package) of this process."""
        wrong = next((value for _, value in not_finite(answers)), None)
        if wrong is not None:
            return [], wrong, None
        try:
            return [scored(task, *pair) for pair in zip(examples, answers, strict=True)], None, None
        except EvaluationError as error:
            return [], None, str(error)

    def _all_stop(self) -> bool:
        """Whether any process was asked to stop; they ask together, so that none leaves alone."""
        told = self._stopped()
        if dist.get_world_size() > 1:
            anyone = torch.tensor(int(told), device=self._subject.device)
            dist.all_reduce(anyone, reduce_operation="MAX")
            told = bool(anyone)
        return told

    def _go_on(self, rows: int) -> None:
        self._beat("rows of an evaluation task")
        # Several processes stop before the next task: one that left alone would keep the others waiting.
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
