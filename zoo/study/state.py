"""The folder of a study, and what became of each run: read from the run folders alone, so that any stop can be resumed.

    OUT/recipes/RUN.yaml     the resolved recipe of a run
    OUT/runs/RUN/            its run folder
    OUT/outcomes/RUN.json    what became of it: why it failed or diverged; of a run that is done its results
    OUT/logs/RUN.txt         all that its processes printed; also what the preparation printed and found,
                             and device-RUN.json: how many runs shared its device
    OUT/speed/NAME.json      decoding speed of an architecture
    OUT/speed/training/NAME.json   its training speed, measured alone
    OUT/threads.json         threads of each run
    OUT/running.json         what the running study does now
    OUT/results.json, measured.json, report.html, report.md

No torch.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import RecipeError, ZooError
from zoo.files import (
    make_folder,
    open_file,
    open_to_append,
    present,
    read_bytes,
    read_json,
    write_json,
    write_sealed_json,
    write_text,
)
from zoo.recipe import recorded_recipe
from zoo.recipe.differences import differences
from zoo.runs.folder import RunFolder
from zoo.study.config import StudyError
from zoo.study.expand import Run
from zoo.study.kept import read_outcome, read_summary, read_threads

DONE, FAILED, DIVERGED, WAITING = "done", "failed", "diverged", "waiting"
PATIENCE_S = 3.0  # `zoo study status` looks at the lock for an instant
TAIL_BYTES = 1 << 15
MOST_NUMBER = 1e100  # a larger one is of no training


class OtherSettings(StudyError):
    """Run folders of the study that were started with other settings."""

    exit_code = 2


@dataclass(frozen=True)
class State:
    """What became of a run: done, failed, diverged or waiting; `why` for the two in the middle."""

    name: str
    why: str = ""

    @property
    def ended(self) -> bool:
        """Whether the run is done, failed or diverged."""
        return self.name != WAITING


class StudyFolder:
    """The folder of a study and its files."""

    def __init__(self, path: Path):
        self.path = path
        self.recipes, self.runs, self.outcomes = path / "recipes", path / "runs", path / "outcomes"
        self.logs, self.speed = path / "logs", path / "speed"
        self.training_speed = self.speed / "training"
        self.running = path / "running.json"

    def make(self) -> None:
        """Make the folder and those inside it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"{self.path}: cannot be made: {error.strerror}; name another with out: ...") from error
        for folder in (self.recipes, self.runs, self.outcomes, self.logs, self.speed, self.training_speed):
            make_folder(folder, StudyError)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: a second `zoo study run` on it is refused."""
        self.make()
        with open_to_append(self.path / ".lock", StudyError) as file:
            end = time.monotonic() + PATIENCE_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        message = "another zoo study run works in this folder; see zoo study status"
                        raise StudyError(f"{self.path}: {message}") from None
                    time.sleep(0.05)
            yield

    def is_running(self) -> bool:
        """Whether a `zoo study run` holds the folder now."""
        with suppress(OSError, ZooError), open_file(self.path / ".lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def folder(self, run: Run) -> RunFolder:
        """The run folder of a run."""
        return RunFolder(self.runs / run.id)

    def recipe(self, run: Run) -> Path:
        """The file with the resolved recipe of a run."""
        return self.recipes / f"{run.id}.yaml"

    def outcome(self, run: Run) -> Path:
        """The file that says what became of a run."""
        return self.outcomes / f"{run.id}.json"

    def prepared(self, run: Run) -> Path:
        """The file that says which rows were prepared for a run and for those that share its data."""
        return self.logs / f"prepared-{run.id}.json"

    def log(self, run: Run) -> Path:
        """The file with what the processes of a run printed."""
        return self.logs / f"{run.id}.txt"

    def threads(self, default: int) -> int:
        """Threads of each run: those that the study began with, because another number gives other last digits."""
        file = self.path / "threads.json"
        if not present(file, StudyError):
            write_json(file, {"threads": default})
        return read_threads(file)

    def write_recipe(self, run: Run) -> None:
        """Write the resolved recipe, from which the run is trained, if it is not there yet."""
        path, text = self.recipe(run), run.recipe.dump()
        if not (present(path, StudyError) and read_bytes(path, error=StudyError) == text.encode()):
            write_text(path, text)

    def state(self, run: Run, tasks: Mapping[str, int]) -> State:
        """What became of a run.  tasks: label -> version of the tasks that a run must have been scored on."""
        found = read_outcome(self.outcome(run)) if present(self.outcome(run)) else {}
        if found.get("state") in (FAILED, DIVERGED):
            return State(found["state"], str(found.get("why", "")))
        if found.get("state") == DONE and has_scores(found["results"], tasks):
            return State(DONE)
        summary = read_summary(self.folder(run))
        if summary is None or not self._scored(run, tasks, summary):
            return State(WAITING)
        return State(DONE)

    def kept(self, run: Run) -> dict[str, Any] | None:
        """The results that were written down when a run was done: {"recipe", "results", "measured"}; else None."""
        if not present(self.outcome(run)):
            return None
        found = read_outcome(self.outcome(run))
        return found if found.get("state") == DONE else None

    def keep(self, run: Run, results: dict[str, Any], measured: dict[str, Any]) -> None:
        """Write down the results of a run that is done: its folder, with the weights, may then be removed."""
        recipe = run.recipe.model_dump(mode="json")
        write_sealed_json(
            self.outcome(run), {"state": DONE, "recipe": recipe, "results": results, "measured": measured}
        )

    def _scored(self, run: Run, tasks: Mapping[str, int], summary: dict[str, Any]) -> bool:
        path = self.folder(run).path / "eval.json"
        if not tasks:
            return True
        if not present(path):
            return False
        from zoo.evaluation.results import read_results  # imports numpy

        found = [r for r in read_results(path) if r.model.get("digest") == summary.get("sha256")]
        return tasks.items() <= {r.label: r.version for r in found}.items()

    def fail(self, run: Run, why: str) -> None:
        """Record that a run failed."""
        write_json(self.outcome(run), {"state": FAILED, "why": why})

    def forget(self, run: Run) -> None:
        """Forget what became of a run, but for its folder."""
        self.outcome(run).unlink(missing_ok=True)

    def now_running(self) -> list[str]:
        """Ids of the runs that the study at work trains now; none if there is no study at work."""
        if not (self.is_running() and self.running.is_file()):
            return []
        with suppress(ZooError):
            names = read_json(self.running).get("runs")
            return [str(name) for name in names] if isinstance(names, list) else []
        return []


def has_scores(results: Mapping[str, Any], tasks: Mapping[str, int]) -> bool:
    """Whether the results of a run hold the scores of these tasks, label -> version."""
    versions = results.get("versions", {})
    return all(label in results["scores"] and versions.get(label, 1) == wanted for label, wanted in tasks.items())


def refuse_other_settings(folder: StudyFolder, runs: list[Run]) -> None:
    """Raise OtherSettings if a run was trained with settings that give other numbers than the study's.

    A run that goes on with a longer duration or another learning rate is not the run that the study describes.
    """
    problems = []
    for run in runs:
        try:
            found = _other_settings(folder, run)
        except RecipeError as error:
            problems.append(str(error))
            continue
        if found:
            where = " and ".join(str(p) for p in (folder.folder(run).path, folder.outcome(run)) if p.exists())
            problems.append(f"{where}: of other settings: {'; '.join(found)}")
    if problems:
        way_out = "remove these to train the runs anew, or give the study another folder with out: ..."
        raise OtherSettings("\n".join([*problems, way_out]))


def _other_settings(folder: StudyFolder, run: Run) -> list[str]:
    """What differs between a run's recipe and the one that it was trained with, each in words."""
    kept, known = folder.folder(run), folder.kept(run)
    if known is None and not present(kept.recipe) and not kept.traces():
        return []
    recipe = run.recipe.model_dump(mode="json")
    before = None if known is None else _recorded(known["recipe"])
    if before == recipe:
        return []
    from zoo.training.continuing import WATCHING, Change, changes  # imports numpy

    if known is not None:
        found = [Change(*difference) for difference in differences(before, recipe)]
    else:
        found = changes(kept, run.recipe)
    return [str(change) for change in found if not (change.under(WATCHING) or change.of_place)]


def _recorded(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe of an outcome, with the defaults of keys that its version did not have."""
    read = recorded_recipe(recipe)
    return recipe if read is None else read.model_dump(mode="json")


def latest(metrics: Path) -> dict[str, float]:
    """The last value of each number in a metrics.jsonl, read from its end; {} if there is none."""
    try:
        size, end = tail(metrics)
    except (OSError, ZooError):
        return {}
    lines = end.splitlines()
    found: dict[str, float] = {}
    for line in lines[1:] if size > TAIL_BYTES else lines:
        with suppress(ValueError, RecursionError):  # a line that is being written
            record = json.loads(line)
            if isinstance(record, dict):
                found |= {key: value for key, value in record.items() if _is_number(value)}
    return found


def tail(path: Path) -> tuple[int, bytes]:
    """Size of a file, and its last TAIL_BYTES.  Raises ZooError for what is no regular file."""
    with open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        return size, file.read(TAIL_BYTES)


def last_words(log: Path, most: int = 3) -> str:
    """The last lines that a process printed."""
    try:
        lines = tail(log)[1].decode(errors="replace").splitlines()
    except (OSError, ZooError):
        return ""
    return "\n".join([line for line in lines if line.strip()][-most:])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < MOST_NUMBER
