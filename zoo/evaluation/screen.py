"""What an evaluation says while it runs."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zoo.evaluation.results import Result
from zoo.terminal import clean


class Screen:
    """Progress on standard error: a bar on a terminal, a line a task elsewhere."""

    def __init__(self, model: str):
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._model = model
        self._bar: Progress | None = None

    def begin(self, task, rows: int) -> None:
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

    def end(self, task, result: Result, found: bool) -> None:
        self.close()
        name, numbers = result.primary
        how = "kept from before" if found else f"{result.rows:,} rows in {result.time_s:.1f} s"
        said = f"{self._model}: {task.label}: {name} {numbers['value']:.4f} ({how})"
        self.console.print(clean(said), markup=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
