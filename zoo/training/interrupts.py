"""Signals that ask a training to stop: noted from its first import to its last file, and obeyed where nothing is lost.

| phase                        | what the first signal does                                                |
|------------------------------|---------------------------------------------------------------------------|
| importing the engine         | the import ends first: libraries catch what is raised while they import    |
| preparing data               | ends at once; finished pieces are kept                                     |
| building model and loaders   | ends after it                                                              |
| training, validating, saving | the batch is finished, a validation is cut short, a checkpoint is written  |
| writing the weights          | they are written, and the run is complete                                  |

Ctrl-C again ends at once in every phase.  SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 may come as often as they like: Slurm,
launchers and systemd send them to the group and to each process.  `nohup` keeps its effect: an ignored SIGHUP stays so.
"""

import os
import signal
import threading
import time
from typing import Any

from zoo.child import LAUNCHED
from zoo.errors import ZooError
from zoo.processes import STOP_SIGNALS
from zoo.training.screen import tell_terminal

AGAIN_AFTER_S = 0.3  # one Ctrl-C can reach a process twice, from the terminal and from its launcher


class Interrupted(ZooError):
    """Training was stopped by a signal; the message says where it continues."""

    exit_code = 130


class StopRequests:
    """Handlers for the length of a `with`; those that were there before come back.  `received` is the first signal.

    quiet: do not write to the terminal what will happen (all ranks but the first).
    Outside the main thread, where Python allows no handlers, nothing is received.
    """

    def __init__(self, quiet: bool = False):
        self.received: int | None = None
        self.quiet = quiet
        self._first_s = 0.0
        self._will = "stops when the engine is imported"
        self._at_once = False
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            ignored = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else []
            self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS if number not in ignored}
            self.listen()
            if LAUNCHED in os.environ:  # born with them blocked
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def listen(self) -> None:
        """Set the handlers, again after an import that set its own."""
        for number in self._before:
            signal.signal(number, self._handle)

    def enter(self, will: str, at_once: bool = False) -> None:
        """Begin a phase.  will: what the first signal does now, for the terminal; at_once: it raises KeyboardInterrupt.

        Raises KeyboardInterrupt if a signal came in the phase before and this one ends at once.
        """
        self._will, self._at_once = will, at_once
        if at_once:
            self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal was received."""
        if self.received is not None:
            raise KeyboardInterrupt

    def name(self) -> str:
        """The signal's name."""
        return "" if self.received is None else signal.Signals(self.received).name

    def _handle(self, number: int, frame) -> None:
        if os.getpid() != self._pid:  # a process that some library forked, and that was not sheltered
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        now = time.monotonic()
        if self.received is not None:
            if number == signal.SIGINT and now - self._first_s >= AGAIN_AFTER_S:
                raise KeyboardInterrupt
            return
        self.received, self._first_s = number, now
        if not self.quiet:
            again = "" if self._at_once else " (Ctrl-C again: at once)"
            tell_terminal(f"{self.name()}: {self._will}{again}")
        if self._at_once:
            raise KeyboardInterrupt
