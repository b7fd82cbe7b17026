"""Ends a run that hangs: the stacks of all its processes go into log.txt, and one line says so.

Processes that wait for each other for ever (in a collective, for a reader that was stopped, for a disk that went away)
would hold their devices until somebody looks.
"""

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from zoo import processes
from zoo.training.screen import tell_terminal

TICKS = 60  # looks within the time allowed


class Watchdog:
    """Within a `with`, `beat` must be called every `minutes`; else the process writes its stacks and ends with code 1.

    minutes: 0 never.  log: where stacks are appended.  title: of this process, in the log.  advice: ends the message.
    Time in which the whole process was stopped (SIGSTOP, a suspended machine) does not count.
    """

    def __init__(self, minutes: float, log: Path, title: str, advice: Callable[[], str]):
        self.limit_s, self.log, self.title, self.advice = 60 * minutes, log, title, advice
        self._beats, self._last = 0, "the start"
        self._idle_s = 0.0  # written by the watching thread alone
        self._over = threading.Event()

    def __enter__(self) -> "Watchdog":
        processes.stacks = self.log  # for readers that are started from now on
        if self.limit_s:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._over.set()
        processes.stacks = None

    def beat(self, what: str) -> None:
        """Note progress; `what` was done."""
        self._beats, self._last = self._beats + 1, what

    def _watch(self) -> None:
        tick, seen, beats = self.limit_s / TICKS, time.monotonic(), self._beats
        while not self._over.wait(tick):
            now = time.monotonic()
            self._idle_s = self._idle_s + min(now - seen, 2 * tick) if beats == self._beats else 0.0
            seen, beats = now, self._beats
            if self._idle_s >= self.limit_s:
                self._end()

    def _end(self) -> None:
        found = f"no progress for {self.limit_s / 60:g} min (train.stall_minutes) after {self._last}"
        processes.dump_stacks(self.log, f"{self.title}: {found}")
        children = multiprocessing.active_children()
        for child in children:
            with contextlib.suppress(OSError):
                if child.pid is not None:
                    os.kill(child.pid, processes.DUMP_STACKS)
        time.sleep(1.0 if children else 0.0)
        tell_terminal(f"{found}; the stacks of all processes are in {self.log}; {self.advice()}")
        os._exit(1)  # the main thread may wait where no exception reaches it
