"""A process of `zoo bench eval`: prints one JSON object for each task.

    python -m zoo.bench.evaluation_step zoo runs/ansa FOLDER --tasks common_sense --peers
    python -m zoo.bench.evaluation_step hflm runs/ansa FOLDER --batch-size 64

FOLDER holds what both processes read: the texts of each task, the export of a run, the log-likelihoods to compare.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.bench.machine import machine, peak_bytes
from zoo.bench.processes import end_with_the_command, refuse
from zoo.blocks import load_plugin
from zoo.errors import ZooError


def main() -> None:
    """Measure as the command line says."""
    end_with_the_command()
    parser = argparse.ArgumentParser()
    parser.add_argument("program", choices=["zoo", "hflm"])
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--plugin", action="append", default=[])
    arguments = parser.parse_args()
    for module in arguments.plugin:  # imported by the command before, so it can be
        load_plugin(module)
    try:
        if arguments.program == "zoo":
            measure_zoo(arguments.model, arguments.folder, arguments.tasks, arguments.rows, arguments.peers)
        else:
            measure_hflm(arguments.model, arguments.folder, arguments.batch_size)
    except ZooError as error:
        refuse(error)


def measure_zoo(model: str, folder: Path, tasks: str, rows: int | None, peers: bool) -> None:
    """Time the zoo on each task.  peers: leave in the folder what a peer needs for the same rows."""
    from zoo.evaluation.asking import answer
    from zoo.evaluation.command import parse_tasks
    from zoo.evaluation.errors import EvaluationError
    from zoo.evaluation.registry import make_tasks
    from zoo.evaluation.run import make_examples
    from zoo.evaluation.subject import ZooSubject
    from zoo.evaluation.subjects import load_subject
    from zoo.evaluation.task import Chosen

    made = make_tasks(parse_tasks(tasks), rows=rows)
    subject = load_subject(model)
    for number, task in enumerate(made):
        examples = make_examples(task, subject)
        pairs = _texts(examples) if peers else None
        start = time.perf_counter()
        try:
            answers = answer(subject, examples)
        except EvaluationError as error:
            raise EvaluationError(f"{task.task}: {error}") from error
        seconds = time.perf_counter() - start
        if pairs is not None:
            options = [len(example.options) for example in examples]
            asked = {"task": task.label, "pairs": pairs, "options": options}
            (folder / f"{number}.json").write_text(json.dumps(asked))
            logs = [log for one in answers if isinstance(one, Chosen) for log in one.loglikelihood]
            np.save(folder / f"{number}.zoo.npy", logs)
        _say(task.label, number, len(examples), seconds, machine=machine())
    if peers and isinstance(subject, ZooSubject):
        from zoo.export.writing import export

        export(model, folder / "model")


def _texts(examples: Sequence[Any]) -> list[tuple[str, str]] | None:
    """(context, continuation) of every option, or None if the task is not scored by the likelihood of texts."""
    from zoo.evaluation.task import Choice

    if not all(isinstance(example, Choice) for example in examples):
        return None
    pairs = [pair for example in examples for pair in example.options]
    return pairs if all(isinstance(context, str) for context, _ in pairs) else None


def measure_hflm(model: str, folder: Path, batch_size: int) -> None:
    """Time lm-eval's HFLM on the texts in the folder, in bf16 on a GPU as the zoo.

    Raises ZooError where lm-eval is not installed.
    """
    import torch

    from zoo.evaluation import harness  # noqa: F401 - says how to install lm-eval where it is missing
    from lm_eval.api.instance import Instance  # isort: skip
    from lm_eval.models.huggingface import HFLM

    exported = folder / "model"
    on_gpu = torch.cuda.is_available()
    theirs = HFLM(
        pretrained=str(exported if exported.is_dir() else model),
        device="cuda" if on_gpu else "cpu",
        dtype="bfloat16" if on_gpu else "float32",
        batch_size=batch_size,
        trust_remote_code=exported.is_dir(),
    )
    for path in sorted(folder.glob("*.json"), key=lambda path: int(path.stem)):
        asked = json.loads(path.read_text())
        requests = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(asked["pairs"])]
        start = time.perf_counter()
        found = theirs.loglikelihood(requests, True)
        seconds = time.perf_counter() - start
        np.save(folder / f"{path.stem}.hflm.npy", [log for log, _ in found])
        _say(asked["task"], int(path.stem), len(asked["options"]), seconds)


def _say(task: str, number: int, rows: int, seconds: float, **more: Any) -> None:
    found = {"task": task, "number": number, "rows": rows, "seconds": seconds, "peak_bytes": peak_bytes(), **more}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
