"""What an evaluation says while it runs."""

import warnings

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zoo.evaluation.results import Result
from zoo.evaluation.task import Task
from zoo.terminal import clean


class Silent:
    """Follows an evaluation without showing it. `Screen` shows it."""

    def begin(self, task: Task, rows: int) -> None:
        """A task is going to be scored."""

    def advance(self, rows: int) -> None:
        """Further rows of the task have their answers.  rows: how many since the last call."""

    def end(self, task: Task, result: Result, found: bool) -> None:
        """A task has its result.  found: it was in eval.json already."""

    def say(self, text: str) -> None:
        """Something that the user should know: memory ran out, and the batches are smaller."""
        warnings.warn(text, stacklevel=2)

    def close(self) -> None:
        """The evaluation ended, or failed."""


class Screen(Silent):
    """Progress on standard error: a bar on a terminal, a line a task elsewhere."""

    def __init__(self, model: str):
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._model = model
        self._bar: Progress | None = None

    def begin(self, task: Task, rows: int) -> None:
        self.close()
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task(clean(f"{self._model}: {task.label}"), total=rows)
            self._bar.start()

    def advance(self, rows: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, rows)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(clean(f"{self._model}: {text}"), markup=False)

    def end(self, task: Task, result: Result, found: bool) -> None:
        self.close()
        name, numbers = result.primary
        how = "kept from before" if found else f"{result.rows:,} rows in {result.time_s:.1f} s"
        self.say(f"{task.label}: {name} {numbers['value']:.4f} ({how})")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
