"""What a training says: a live line on a terminal, plain lines elsewhere, and everything in log.txt."""

import contextlib
import logging
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zoo.files import open_text_to_append
from zoo.terminal import clean, reader_gone
from zoo.training.notebook import Cell
from zoo.training.plan import Plan

log = logging.getLogger("zoo.training")


class _Console(Console):
    """Standard output. When its reader goes (`| head`, a `tee` that Ctrl-C ended first, a terminal that was closed),
    training goes on in silence: log.txt has everything, and rich's own ways out would lose what is not saved yet."""

    def _check_buffer(self) -> None:
        """Rich calls `on_broken_pipe` from here for a pipe only."""
        try:
            super()._check_buffer()
        except OSError as error:
            if not reader_gone(error):
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)  # for what Python still holds and would write at its end
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def tell_terminal(text: str) -> None:
    """Write to standard error at once, from a signal handler: it may have cut into a print, and the reader be gone."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{clean(text)}\n".encode())


class Screen:
    """Prints for rank 0 and is silent on other ranks. `say` also writes to the log.

    Called with each record of metrics, it moves the progress bar of a terminal, or prints about twenty lines in all.
    """

    def __init__(self, rank: int = 0, console: Console | None = None):
        self.console = console or _Console(highlight=False, soft_wrap=True, quiet=rank != 0)
        self._bar: Progress | None = None
        self._cell: Cell | None = None  # of a notebook

    def say(self, text: str) -> None:
        """Print a line, and log it."""
        self.console.print(clean(text), markup=False)
        log.info("%s", text)

    def start(self, plan: Plan, from_batch: int) -> None:
        """Begin to show progress."""
        self.plan, self._every = plan, max(1, plan.total // 20)
        if self.console.is_jupyter:
            self._cell = Cell.shown(plan.total)
        elif self.console.is_terminal:
            columns = (
                TextColumn("training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("", total=plan.total, completed=from_batch, loss="-", speed="-")
            self._bar.start()

    def __call__(self, record: dict) -> None:
        if "validation_loss" in record:
            bits = record.get("validation_bits_per_byte")
            end = "" if bits is None else f", {bits:.3f} bits per byte"
            end += f", accuracy {record['validation_accuracy']:.1%}" if "validation_accuracy" in record else ""
            self.say(f"validation after batch {record['batch']}: loss {record['validation_loss']:.4f}{end}")
            return
        if "loss" not in record:
            self._say_scores(record)
            return
        loss, speed = f"{record['loss']:.4f}", f"{record['tokens_per_s']:,.0f}"
        if self._cell is not None:
            self._cell.update(record["batch"], record["loss"], record["tokens_per_s"])
        elif self._bar is not None:
            self._bar.update(self._task, completed=record["batch"], loss=loss, speed=speed)
        elif record["batch"] % self._every == 0 or record["batch"] == self.plan.total:
            mfu = f"  mfu {record['mfu']:.1%}" if "mfu" in record else ""
            width = len(str(self.plan.total))
            self.say(
                f"batch {record['batch']:>{width}}/{self.plan.total}  loss {loss}  lr {record['lr']:.2e}  "
                f"{speed} tokens/s{mfu}"
            )

    def _say_scores(self, record: dict) -> None:
        """One line a task: the first of its metrics."""
        told = set()
        for name, value in record.items():
            _, _, rest = name.partition("task/")
            label, _, metric = rest.rpartition("/")
            if label and metric != "stderr" and label not in told:
                told.add(label)
                self.say(f"after batch {record['batch']}: {label}: {metric} {value:.4f}")

    def close(self) -> None:
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._cell is not None:
            self._cell.close()
            self._cell = None


class _LogFile(logging.FileHandler):
    """A log whose own failure, on a full disk, does not bury the error it was to tell."""

    def _open(self):
        return open_text_to_append(Path(self.baseFilename))

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class CleanFormatter(logging.Formatter):
    """A log formatter whose lines pass `clean`."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


def log_to(path: Path) -> logging.Handler:
    """Send the zoo's messages and the engine's warnings to a file; returns the handler, for `stop_log`."""
    handler = _LogFile(path, encoding="utf-8")
    formatter = CleanFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.getLogger("zoo").setLevel(logging.INFO)
    for name in ("zoo", "composer", "streaming"):
        logging.getLogger(name).addHandler(handler)
    return handler


def stop_log(handler: logging.Handler) -> None:
    """Undo `log_to`, and close its file."""
    for name in ("zoo", "composer", "streaming"):
        logging.getLogger(name).removeHandler(handler)
    handler.close()
