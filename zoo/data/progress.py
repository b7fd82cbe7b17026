"""Progress of a preparation: a live bar on a terminal, a line now and then when piped; on standard error."""

import sys
import time
from types import TracebackType
from typing import Any

from zoo.terminal import err


class Progress:
    """Counts bytes of text: `with Progress("text", total) as progress: progress.advance(n)`; total None: not known."""

    interval_s = 10.0

    def __init__(self, label: str, total: int | None, *, quiet: bool = False):
        self._label, self._total, self._done = label, total, 0
        self._quiet = quiet
        self._bar: Any = None
        self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        if not self._quiet and sys.stderr.isatty():
            self._bar, self._task = _bar(self._label, self._total)
            self._bar.start()
        return self

    def advance(self, n_bytes: int) -> None:
        """Note that n_bytes more of the text are done."""
        self._done += n_bytes
        if self._bar:
            self._bar.update(self._task, advance=n_bytes)
        elif not self._quiet and time.monotonic() - self._said > self.interval_s:
            self._said = time.monotonic()
            of = f" of about {self._total / 1e6:,.0f}" if self._total else ""
            err(f"preparing {self._label}: {self._done / 1e6:,.0f}{of} MB")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()


def _bar(label: str, total: int | None):
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    ]
    bar = RichProgress(*columns, console=Console(stderr=True), transient=True)
    return bar, bar.add_task(f"preparing {label}", total=total)
