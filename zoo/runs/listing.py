"""`zoo runs`, and what `zoo show RUN` says of the run: how far it is, and its last validation. No torch."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, shorten
from zoo.json_text import json_text
from zoo.runs.folder import RunFolder, RunFolderError, is_held
from zoo.runs.metrics import read_metrics
from zoo.tables import Table, Text, rendered
from zoo.terminal import one_line

MOST_DEPTH = 5  # folders below the one that is named; runs of a study lie three deep
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    state: complete, training (a process holds the folder now), stopped, or damaged; unreadable is a folder that may
    hold runs.  `why` says what is wrong with a damaged or unreadable one.  parameters: None until the run is complete.
    loss and bits_per_byte: of the last validation, None without one.  changed: when its metrics were last written, ISO
    8601, local time.
    """

    run: str
    state: str
    batches: int = 0
    tokens: int = 0
    parameters: int | None = None
    loss: float | None = None
    bits_per_byte: float | None = None
    changed: str | None = None
    why: str | None = None


class NoRuns(ZooError):
    """There is no such folder, or no run in it."""

    exit_code = 2


def is_run(path: Path) -> bool:
    """Whether a folder holds a run: a resolved recipe, and a trace of training."""
    folder = RunFolder(path)
    return folder.recipe.is_file() and bool(folder.traces() or os.path.lexists(folder.environment))


def run_state(path: Path) -> RunState:
    """Read the state of one run; a damaged file is part of the answer, not an error."""
    folder = RunFolder(path)
    name = one_line(path)
    try:
        summary = folder.read_summary()
        records = read_metrics(folder.metrics)
        parameters = _parameters(folder, summary)
    except (ZooError, OSError) as error:
        return RunState(name, "damaged", why=one_line(error))
    latest = records[-1] if records else {}
    validation: dict = next((record for record in reversed(records) if "validation_loss" in record), {})
    return RunState(
        name,
        "complete" if summary else "training" if is_held(path / ".lock") else "stopped",
        latest.get("batch", 0),
        latest.get("tokens", 0),
        parameters,
        validation.get("validation_loss"),
        validation.get("validation_bits_per_byte"),
        _changed(folder.metrics),
    )


def _parameters(folder: RunFolder, summary: dict | None) -> int | None:
    """What summary.json says; None while the run is not complete, and where an earlier version did not say."""
    found = None if summary is None else summary.get("parameters")
    if found is not None and type(found) is not int:
        raise RunFolderError(f"{folder.summary}: parameters: must be a whole number; found {shorten(found)}")
    return found


def _changed(path: Path) -> str | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime).isoformat(sep=" ", timespec="minutes")
    except OSError:
        return None


def run_states(top: Path) -> list[RunState]:
    """The runs in a folder and below it, sorted, and the folders there that cannot be read.

    Raises NoRuns if there are none, or no such folder.
    """
    if not _is_folder(top):
        raise NoRuns(f"{top}: no such folder; runs are made by zoo train, by default in runs/")
    failed: list[OSError] = []
    found = {path: run_state(path) for path in _walk(top, failed.append)}
    for error in failed:
        path = Path(error.filename)
        found.setdefault(path, RunState(one_line(path), UNREADABLE, why=f"cannot be read: {error.strerror}"))
    if not found:
        raise NoRuns(f"{top}: holds no run; runs are made by zoo train, by default in runs/")
    return [state for _, state in sorted(found.items())]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # in a folder that may not be entered
        raise NoRuns(f"{path}: cannot be read: {error.strerror}") from error


def _walk(top: Path, failed: Callable[[OSError], None]) -> Iterator[Path]:
    """The runs below a folder.  failed: gets the error of each folder that cannot be read; it names the folder."""
    been: set[str] = set()
    for folder, inner, _ in os.walk(top, onerror=failed, followlinks=True):  # a run on another disk is often a link
        path, real = Path(folder), os.path.realpath(folder)
        if real in been:
            inner.clear()
            continue
        been.add(real)
        try:
            os.stat(f"{folder}/.")  # is_file is False in some versions of Python where it may not look
            holds_run = is_run(path)
        except OSError as error:  # names may be listed, and the files not looked at
            failed(OSError(error.errno, error.strerror, folder))
            inner.clear()
            continue
        if holds_run:
            yield path
            inner.clear()
        elif len(path.relative_to(top).parts) >= MOST_DEPTH:
            inner.clear()
        inner[:] = sorted(name for name in inner if not name.startswith("."))


def as_json(top: Path) -> str:
    """The runs of a folder as JSON."""
    return json_text([asdict(state) for state in run_states(top)])


def as_text(top: Path, width: int | None = None) -> str:
    """The runs of a folder as a table, a line each."""
    states = run_states(top)
    table = Table("run", "state", "batches", "tokens", "parameters", "loss", "bits/byte", "changed")
    table.columns[0].overflow = "fold"
    for column in table.columns[2:7]:
        column.justify = "right"
    for state in states:
        table.add_row(state.run, state.state, *_numbers(state), state.changed or "")
    notes = [Text(f"{state.run}: {state.why}") for state in states if state.why]
    return rendered([table, *notes], width)


def _numbers(state: RunState) -> list[str]:
    counts = [f"{count:,}" if count else "" for count in (state.batches, state.tokens, state.parameters)]
    return counts + [f"{value:.3f}" if value is not None else "" for value in (state.loss, state.bits_per_byte)]


def as_dict(path: Path) -> dict[str, Any]:
    """The state of one run, for `zoo show RUN --json`."""
    return asdict(run_state(path))


def sentence(path: Path) -> str:
    """The state of one run in words, for `zoo show RUN`."""
    state = run_state(path)
    if state.why:
        return f"run {state.run}: damaged: {state.why}"
    text = f"run {state.run}: {state.state}, {state.batches:,} batches, {state.tokens:,} tokens"
    if state.loss is not None:
        text += f"; validation loss {state.loss:.4f}"
    if state.bits_per_byte is not None:
        text += f", {state.bits_per_byte:.3f} bits per byte"
    return text
