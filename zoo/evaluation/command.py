"""`zoo eval`: a live table on the terminal, results in eval.json, JSON on request."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import ZooError, shorten
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.registry import GROUPS, make_tasks, names, task_class
from zoo.evaluation.results import FILE, Result, ResultFile
from zoo.evaluation.screen import Screen
from zoo.evaluation.table import as_table, list_table
from zoo.json_text import json_text


@dataclass(frozen=True)
class Request:
    """What the user asked for; see the options of `zoo eval`."""

    models: Sequence[str]
    tasks: str | None = None
    harness: str | None = None
    seq_len: str | None = None
    data: Path | None = None
    rows: int | None = None
    seed: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    again: bool = False
    json: bool = False
    output: Path | None = None
    plot: Path | None = None


def list_command(as_json: bool) -> str:
    """The tasks: what each measures, rows, chance level, where the data come from."""
    if not as_json:
        return list_table(names(), GROUPS)
    found = []
    for name in names():
        task = task_class(name)
        found.append(
            {
                "task": name,
                "title": task.title,
                "measures": task.measures,
                "rows": task.row_count(),
                "chance": task.chance_text(),
                "data": task.data_from,
                "metrics": [metric.name for metric in task.metrics],
                "primary": task.primary().name,
            }
        )
    return json_text({"tasks": found, "groups": {name: list(tasks) for name, tasks in GROUPS.items()}}, indent=1)


def eval_command(request: Request) -> str:
    """Evaluate, with progress on standard error; return what is printed at the end."""
    if not request.models:
        raise EvaluationError("name at least one run folder, e.g. zoo eval runs/quickstart; the tasks: zoo eval --list")
    tasks = _tasks(request)
    if request.output is not None and len(request.models) > 1:
        raise EvaluationError("--output: is for one model; of several, each keeps its own eval.json")
    if request.plot is not None:
        from zoo.evaluation.plots import check_drawn, check_suffix

        check_suffix(request.plot)
        check_drawn(tasks)
    kept = _result_files(request)  # of all models: a mistake in the last one is told before the first one is scored
    results = {model: _evaluate(model, tasks, request, file) for model, file in kept.items()}
    if request.plot is not None:
        from zoo.evaluation.plots import plot

        plot(results, request.plot)
    if request.json:
        return json_text({model: [asdict(r) for r in found] for model, found in results.items()}, indent=1)
    return as_table(results)


def _result_files(request: Request) -> dict[str, ResultFile]:
    """Where the results of each model are kept; a folder that is named twice is there once.

    Raises ZooError for what is no model, a damaged eval.json, or a folder in which it cannot be written.
    """
    from zoo.evaluation.subjects import kind_of_subject  # torch: a mistake in the tasks is told at once

    files: dict[str, ResultFile] = {}
    folders: dict[str, str] = {}
    for model in request.models:
        folders.setdefault(os.path.normpath(model), model)
    for model in folders.values():
        kind_of_subject(model)
        path = request.output or Path(model) / FILE
        if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            why = "not writable" if path.parent.is_dir() else "no such folder"
            raise ZooError(f"{path}: cannot be written: {path.parent}: {why}; name another file with --output")
        files[model] = ResultFile(path)
    return files


def _tasks(request: Request) -> list:
    default = "perplexity" if request.data is not None and request.harness is None else None
    wanted = parse_tasks(request.tasks or default or "") if request.tasks or default else []
    if not wanted and request.harness is None:
        raise EvaluationError("--tasks: name tasks, e.g. --tasks mqar,niah; all of them: zoo eval --list")
    lengths = parse_lengths(request.seq_len)
    made = make_tasks(wanted, rows=request.rows, seed=request.seed, lengths=lengths)
    if lengths is not None:
        without = [task.task for task in made if "lengths" not in type(task).model_fields]
        if without:
            have = "has texts of its" if len(without) == 1 else "have texts of their"
            raise EvaluationError(f"--seq-len: {', '.join(without)} {have} own length; leave it out")
    return made


def parse_tasks(text: str) -> list[Any]:
    """Names and mappings, as in a YAML list: mqar,{task: niah_single_1, lengths: [1024]}."""
    try:
        found = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise EvaluationError(f"--tasks: not names or mappings in YAML: {shorten(text)}: {reason}") from error
    if not found:
        raise EvaluationError("--tasks: name at least one task; all of them: zoo eval --list")
    return found


def parse_lengths(text: str | None) -> tuple[int, ...] | None:
    """Lengths separated by commas."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise EvaluationError(f"--seq-len: must be whole numbers from 1, separated by commas; found {text!r}")
    return tuple(int(part) for part in parts)


def _evaluate(model: str, tasks: list, request: Request, kept: ResultFile) -> list[Result]:
    from zoo.evaluation.run import evaluate_subject
    from zoo.evaluation.subject import with_data
    from zoo.evaluation.subjects import load_subject

    subject = load_subject(model, request.device, request.dtype)
    if request.data is not None:
        with_data(subject, request.data, model)
    screen = Screen(model)
    try:
        results = evaluate_subject(subject, tasks, kept, again=request.again, screen=screen)
        if request.harness is not None:
            from zoo.evaluation.harness import run_harness

            results += run_harness(
                subject,
                request.harness,
                kept,
                rows=request.rows,
                lengths=parse_lengths(request.seq_len),
                again=request.again,
                say=screen.say,
            )
        return results
    except OSError as error:
        raise ZooError(f"{kept.path}: cannot be written: {error.strerror}; name another file with --output") from error
    finally:
        screen.close()
