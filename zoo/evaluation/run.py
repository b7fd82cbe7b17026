"""An evaluation from beginning to end: tasks, models, answers, scores, and the file that keeps them."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import ZooError
from zoo.evaluation.asking import answer
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.memory import Budget
from zoo.evaluation.own_tasks import checked_examples, scored
from zoo.evaluation.registry import make_tasks
from zoo.evaluation.results import FILE, Result, ResultFile, hash_examples, summarise
from zoo.evaluation.screen import Screen, Silent
from zoo.evaluation.subject import Subject, with_data
from zoo.evaluation.subjects import load_subject
from zoo.evaluation.task import Answer, Chosen, Predicted, Task


def evaluate(
    model: Subject | str | os.PathLike,
    tasks: str | Mapping[str, Any] | Sequence[Any],
    *,
    data: str | os.PathLike | None = None,
    device: str = "auto",
    dtype: str = "auto",
    again: bool = False,
    output: str | os.PathLike | None = None,
    progress: bool = False,
    **settings: Any,
) -> list[Result]:
    """Score a model on tasks, and keep the results in eval.json of its folder.

    model: a run folder or `Run`, a local transformers folder, or a `Subject`.
    tasks: a name, a group, a mapping {"task": NAME, field: value}, or a list of these; `zoo eval --list` names them.
    data: a YAML file with a data section, whose text the model is scored on.  again: score what eval.json has already.
    output: another file than the folder's eval.json.  progress: show a bar or lines on standard error.
    settings: values for every task that has such a field, such as rows=100, lengths=[1024].
    Raises EvaluationError for a task or a setting, LoadError for the folder.
    """
    made = make_tasks([tasks] if isinstance(tasks, str | Mapping) else list(tasks), **settings)
    subject = model if isinstance(model, Subject) else load_subject(os.fspath(model), device, dtype)
    if data is not None:
        with_data(subject, Path(data), subject.name)
    where = Path(output) if output else None if isinstance(model, Subject) else Path(model) / FILE
    kept = ResultFile(where) if where else None
    screen = Screen(subject.name) if progress else Silent()
    try:
        return evaluate_subject(subject, made, kept, again=again, screen=screen)
    finally:
        screen.close()


def evaluate_subject(
    subject: Subject,
    tasks: Sequence[Task],
    kept: ResultFile | None = None,
    *,
    again: bool = False,
    screen: Silent | None = None,
) -> list[Result]:
    """Score a subject on tasks.  screen: follows the progress.

    All tasks are checked, and their examples made, before the first one runs.
    """
    facts, screen = model_facts(subject), screen or Silent()
    todo, examples = [], {}
    for task in tasks:
        made = make_examples(task, subject)
        found = kept.find(task, facts) if kept and not again else None
        if found is not None and found.examples_hash != hash_examples(made):  # of a text that has changed since
            found = None
        todo.append((task, found))
        if found is None:
            examples[task.label] = made
    _check_data_read(subject, tasks)
    results = []
    for task, found in todo:
        result = found or score(task, subject, examples.pop(task.label), facts, screen)
        if kept and found is None:
            kept.add(result)
        screen.end(task, result, found is not None)
        results.append(result)
    return results


def _check_data_read(subject: Subject, tasks: Sequence[Task]) -> None:
    """Raise EvaluationError if the user named a file with data and no task has read them."""
    held_out = subject.held_out
    if held_out is not None and held_out.name is not None and not held_out.was_read:
        names = ", ".join(dict.fromkeys(task.task for task in tasks)) or "the tasks of lm-eval"
        raise EvaluationError(f"--data {held_out.name}: not read by {names}; leave it out, or add --tasks perplexity")


def make_examples(task: Task, subject: Subject) -> list:
    """The examples of a task for a model.  Raises EvaluationError that names the task if it cannot be given them."""
    if task.needs_text and subject.tokenizer is None:
        raise EvaluationError(f"{task.task}: needs text, and {subject.name} reads plain numbers (it has no tokenizer)")
    try:
        made = checked_examples(task, task.examples(subject))
    except ZooError as error:
        message = str(error)
        raise EvaluationError(message if message.startswith(task.task) else f"{task.task}: {message}") from error
    if not made:
        raise EvaluationError(f"{task.task}: has no examples with these settings")
    return made


def score(task: Task, subject: Subject, examples: list, facts: dict[str, Any], screen: Silent) -> Result:
    """Ask the model, score each row, and summarise."""
    screen.begin(task, len(examples))
    start = time.perf_counter()
    try:
        answers = answer(subject, examples, screen.advance, Budget.of(subject, screen.say))
    except EvaluationError as error:
        raise EvaluationError(f"{task.task}: {error}") from error
    check_finite(task, answers, subject.dtype_name)
    rows = [scored(task, example, reply) for example, reply in zip(examples, answers, strict=True)]
    metrics, by = summarise(task, examples, rows)
    if not metrics:  # of another package
        raise EvaluationError(f"{task.task}: score gives none of the metrics {', '.join(m.name for m in task.metrics)}")
    return Result(
        label=task.label,
        task=task.task,
        settings=task.model_dump(mode="json", exclude={"task", "seed"}),
        version=task.version,
        seed=task.seed,
        rows=len(examples),
        examples_hash=hash_examples(examples),
        metrics=metrics,
        by=by,
        truncated=sum(reply.truncated for reply in answers if isinstance(reply, Chosen)),
        model=facts,
        time_s=round(time.perf_counter() - start, 3),
    )


def check_finite(task: Task, answers: Sequence[Answer], dtype: str) -> None:
    """Raise EvaluationError for a likelihood that is no finite number: no option is likelier than another then."""
    for row, _ in not_finite(answers):
        raise EvaluationError(
            f"{task.task}: row {row}: a log-likelihood is not finite, because what the model gives in {dtype} is "
            "not; use --dtype fp32, and if that gives the same, the weights are broken: train with a lower "
            "learning rate"
        )


def not_finite(answers: Sequence[Answer]) -> Iterator[tuple[int, float]]:
    """(row, likelihood) of each row that has one which is infinite or not a number."""
    for row, reply in enumerate(answers):
        logs = np.asarray(reply.nats if isinstance(reply, Predicted) else reply.loglikelihood)
        if len(wrong := logs[~np.isfinite(logs)]):
            yield row, float(wrong[0])


def model_facts(subject: Subject) -> dict[str, Any]:
    """What a result must say of the model that it is of."""
    return {
        "name": subject.name,
        "digest": subject.digest,
        "config": subject.config_digest,
        "dtype": subject.dtype_name,
        "device": subject.device.type,
        "tokenizer": subject.tokenizer.identity if subject.tokenizer else None,
        "held_out": subject.held_out.name if subject.held_out else None,
    }
