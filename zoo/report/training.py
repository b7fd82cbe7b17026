"""`zoo compare --train`: each recipe trained in turn on the same data in the same order, each in a run folder.

Each run is a process of its own (`zoo train`), so that one that fails leaves the others, and a second start goes on
where the first stopped. A live table reads what the runs write down. No torch.
"""

import contextlib
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.live import Live

from zoo.child import plugin_options, python_module
from zoo.errors import ZooError
from zoo.recipe import Recipe
from zoo.recipe.differences import differences, in_words
from zoo.report.columns import Column, data_read
from zoo.runs.folder import RunFolder
from zoo.runs.metrics import read_metrics
from zoo.tables import Table
from zoo.terminal import clean
from zoo.training.interrupts import Interrupted

POLL_S = 0.5
MOST_LINES = 12  # of a refusal, which has a line for each key or source
PREPARATION = ("preparing ", "training the ", "making ", "waiting for ", "removing ")  # what preparing data says


def train_columns(
    columns: Sequence[Column], runs_dir: Path, overrides: Sequence[str], console: Console | None = None
) -> list[Column]:
    """Train every column that is a recipe into runs_dir/<name>; the columns come back as runs, or with their reason.

    overrides: as after --set, train.duration among them.  A column whose data, order or batches differ from the first
    recipe's is not trained: its losses would not compare.  Raises Interrupted after Ctrl-C or SIGTERM.
    """
    first = next(column for column in columns if column.recipe)
    names = [column.known_recipe.name if _is_trainable(column) else None for column in columns]
    made = [_checked(column, first, names[:index]) for index, column in enumerate(columns)]
    folders = [runs_dir / column.known_recipe.name if _is_trainable(column) else None for column in made]
    progress = Progress(made, folders, console or Console(stderr=True, highlight=False, markup=False, emoji=False))
    with progress:
        for index, folder in enumerate(folders):
            if folder is not None:
                made[index] = _train(made[index], folder, overrides, lambda state, i=index: progress.set(i, state))
    return made


def _is_trainable(column: Column) -> bool:
    return column.recipe is not None and column.run is None and column.error is None


def _checked(column: Column, first: Column, taken: Sequence[str | None]) -> Column:
    if not _is_trainable(column):
        return column
    if column.known_recipe.name in taken:
        why = f"not trained: another recipe has the name {column.known_recipe.name!r}, which names the run folder"
        return replace(column, error=why)
    ours, theirs = sameness(column.known_recipe), sameness(first.known_recipe)
    if other := [_here_and_there(key, here, there) for key, here, there in differences(ours, theirs)]:
        why = f"not trained: --train needs the data, order and batches of {first.label}: {'; '.join(other)}"
        return replace(column, error=f"{why}; --set makes them equal")
    return column


def _here_and_there(key: str, ours: object, theirs: object) -> str:
    here, there = in_words(ours, theirs)
    return f"{key} is {here} here, {there} there"


def sameness(recipe: Recipe) -> dict[str, object]:
    """What decides which rows a model sees in which order, by key: equal in two recipes, they see the same."""
    seq_len = recipe.seq_len
    found = {f"data.{name}": value for name, value in data_read(recipe).items()}
    rows = {
        "data.seq_len": seq_len,
        "train.batch_size": recipe.train.rows(seq_len),
        "train.duration": recipe.train.duration,
    }
    return {"seed": recipe.seed, "model.vocab_size": recipe.model.vocab_size, **found, **rows}


def _train(column: Column, folder: Path, overrides: Sequence[str], tell) -> Column:
    """Run `zoo train`; the column as a run, or with the last of what the training said.

    A run folder of other settings or data is refused: its numbers would be shown as if they were of this recipe.
    """
    from zoo.training.continuing import refuse_other_run  # imports numpy, which recipes alone do without

    try:
        refuse_other_run(RunFolder(folder), column.recipe)
    except ZooError as error:
        tell("refused")
        return replace(column, error=f"not trained: {error}")
    arguments = ["train", column.source, "--run-dir", str(folder), *plugin_options()]
    arguments += [part for override in overrides for part in ("--set", override)]
    command = python_module("zoo", arguments)
    tell("starts")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            with _passing_on_sigterm(process):
                while process.poll() is None:
                    tell("trains")
                    _wait(process)
        except KeyboardInterrupt:  # the child got the signal too: it finishes its batch and saves
            _end(process)
            raise Interrupted(f"interrupted; the same command continues {folder}") from None
        said.seek(0)
        lines = [line for line in said.read().splitlines() if line.strip()]
    if process.returncode == 0:
        tell("done")
        return replace(column, run=RunFolder(folder))
    if process.returncode in (130, -signal.SIGINT, -signal.SIGTERM):
        tell("stopped")
        raise Interrupted(f"interrupted; the same command continues {folder}")
    tell("failed")
    errors = [line for line in lines if not line.startswith(("note:", "  "))]
    refused = process.returncode == 2
    shown = [line for line in errors if not line.startswith(PREPARATION)][-MOST_LINES:] if refused else errors[-3:]
    why = "\n".join(shown) or f"zoo train ended with {process.returncode}"
    kept = not refused and read_metrics(folder / "metrics.jsonl")
    return replace(column, error=f"training failed: {why}", run=RunFolder(folder) if kept else None)


@contextlib.contextmanager
def _passing_on_sigterm(process: subprocess.Popen) -> Iterator[None]:
    """A SIGTERM to this process alone, as job schedulers send it, stops the training too, which then saves."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(process: subprocess.Popen) -> None:
    try:
        process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return


def _end(process: subprocess.Popen) -> None:
    """Wait for a child that is stopping; a second Ctrl-C ends it."""
    try:
        process.wait()
    except KeyboardInterrupt:
        process.kill()
        process.wait()


class Progress:
    """A live table on a terminal; elsewhere a line whenever a run starts, ends, or has done another tenth."""

    def __init__(self, columns: Sequence[Column], folders: Sequence[Path | None], console: Console):
        self.columns, self.folders, self.console = columns, folders, console
        self.states = ["waits" if folder else "" for folder in folders]
        self._told: set[tuple[int, str]] = set()
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._live:
            self._live.update(self.table())
            self._live.stop()

    def set(self, index: int, state: str) -> None:
        """The state of a column: waits, starts, trains, done, stopped, failed."""
        self.states[index] = state
        if self._live:
            self._live.update(self.table())
            return
        batches, loss, validation = self.numbers(index)
        done = f"batch {batches}" if state == "trains" else state
        mark = f"{state} {batches * 10 // max(1, self.total(index))}" if state == "trains" else state
        if (index, mark) not in self._told and not (state == "trains" and not batches):
            self._told.add((index, mark))
            said = f"{self.columns[index].label}: {done}  loss {loss}  validation {validation}"
            self.console.print(clean(said if state != "starts" else f"{self.columns[index].label}: starts"))

    def total(self, index: int) -> int:
        """Batches of the whole training where the duration says so; 0 where it is in tokens or epochs."""
        duration = self.columns[index].known_recipe.train.duration
        return (
            int(duration.removesuffix("ba").replace("_", ""))
            if duration.endswith("ba") and duration[:-2].isdigit()
            else 0
        )

    def numbers(self, index: int) -> tuple[int, str, str]:
        """(batches done, latest training loss, latest validation loss) of a column."""
        folder = self.folders[index]
        records = [] if folder is None else read_metrics(folder / "metrics.jsonl")
        losses = [record["loss"] for record in records if "loss" in record]
        validations = [record["validation_loss"] for record in records if "validation_loss" in record]
        loss, validation = (f"{found[-1]:.4f}" if found else "-" for found in (losses, validations))
        return records[-1]["batch"] if records else 0, loss, validation

    def table(self):
        table = Table("", "state", "batches", "loss", "validation")
        for index, column in enumerate(self.columns):
            if self.folders[index] is None:
                table.add_row(column.label, "failed" if column.error else "a run", "", "", "")
                continue
            batches, loss, validation = self.numbers(index)
            whole = f" of {self.total(index):,}" if self.total(index) else ""
            table.add_row(column.label, self.states[index], f"{batches:,}{whole}", loss, validation)
        return table
