"""The progress of a study: a live table on a terminal, lines elsewhere; and `zoo study status`. No torch."""

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from zoo.study.estimate import length
from zoo.study.expand import Run
from zoo.study.results import device_of
from zoo.study.runner import Runner
from zoo.study.state import DIVERGED, DONE, FAILED, latest
from zoo.tables import Table
from zoo.terminal import clean, cleaned
from zoo.training.summary import as_time

QUIET_S = 60.0  # between two lines about the progress where there is no terminal
MOST_SHOWN = 24  # running and failed runs in the table
RUNNING, WAITING, UNDECIDED = "running", "waiting", "not yet chosen"


class Progress:
    """What is done, running, waiting and failed, and how long the rest will take."""

    def __init__(self, runner: Runner, running: Iterable[str]):
        self.runner, self.running = runner, set(running)
        self.runs = runner.all()
        self.states = {run.id: self._state(run) for run in self.runs}
        self.unknown = runner.expected() - len(self.runs)  # those whose point is not chosen yet
        self.latest = {run.id: latest(runner.folder.folder(run).metrics) for run in self.runs if self._moves(run)}

    def _state(self, run: Run) -> str:
        return RUNNING if run.id in self.running else self.runner.state(run).name

    def _moves(self, run: Run) -> bool:
        return self.states[run.id] == RUNNING

    def counts(self) -> dict[str, int]:
        """State -> how many runs; the expected runs whose point is not chosen are waiting."""
        found = dict.fromkeys((DONE, RUNNING, WAITING, FAILED, DIVERGED), 0)
        for state in self.states.values():
            found[state] += 1
        found[WAITING] += self.unknown
        return found

    def time_left_s(self) -> float | None:
        """Seconds until the last run ends, from the speed of the runs so far; None if nothing runs or none is known."""
        speeds = self._s_per_flop()
        if not (speeds and self.running):
            return None
        anywhere, left = sum(speeds.values()) / len(speeds), 0.0
        per_architecture: dict[str, float] = {}
        for run in self.runs:
            tokens = length(run.recipe).tokens
            if tokens is None:
                return None
            whole = tokens * self.runner.flops_per_token(run) * speeds.get(run.architecture, anywhere)
            per_architecture[run.architecture] = whole
            if self.states[run.id] in (RUNNING, WAITING):
                left += whole * (1 - min(1.0, self.latest.get(run.id, {}).get("tokens", 0) / tokens))
        if per_architecture:
            left += self.unknown * sum(per_architecture.values()) / len(per_architecture)
        at_once = max(1, min(self.runner.slots.limit(), self.counts()[RUNNING] + self.counts()[WAITING]))
        return left / at_once

    def _s_per_flop(self) -> dict[str, float]:
        """Architecture -> seconds of a FLOP; runs on a device on which nothing runs now say nothing about the rest."""
        moving = {device_of(self.runner.folder, run) for run in self.runs if self._moves(run)}
        found: dict[str, list[float]] = {}
        for run in self.runs:
            if self.states[run.id] not in (DONE, RUNNING):
                continue
            if self.states[run.id] == DONE and None not in moving and device_of(self.runner.folder, run) not in moving:
                continue
            numbers = self.latest.get(run.id) or self.runner.numbers(run)
            if numbers.get("tokens") and numbers.get("time_s"):
                flops = numbers["tokens"] * self.runner.flops_per_token(run)
                found.setdefault(run.architecture, []).append(numbers["time_s"] / flops)
        return {name: sum(values) / len(values) for name, values in found.items()}

    def headline(self) -> str:
        """One line: the counts, and the time left."""
        counts = {name: count for name, count in self.counts().items() if count}
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        left = self.time_left_s() if counts.keys() & {RUNNING, WAITING} else None
        rest = f"; about {as_time(left)} left" if left is not None else ""
        return f"{self.runner.runs.study.config.name}: {said or 'no runs'} of {self.runner.expected()} runs{rest}"

    def table(self) -> Table:
        """A row for each architecture, then one for each run that is running or failed."""
        table = Table("", "done", "running", "waiting", "failed", "chosen", "loss", "validation")
        for name in self.runner.runs.architectures:
            table.add_row(name, *self._architecture(name))
        shown = [run for run in self.runs if self.states[run.id] in (RUNNING, FAILED, DIVERGED)]
        for run in shown[:MOST_SHOWN]:
            table.add_row(f"  {run.id}", *self._run(run))
        if len(shown) > MOST_SHOWN:
            table.add_row(f"  and {len(shown) - MOST_SHOWN} more")
        return table

    def _architecture(self, name: str) -> list[str]:
        states = [self.states[run.id] for run in self.runs if run.architecture == name]
        expected = self.runner.expected() // len(self.runner.runs.architectures)
        counts = [states.count(DONE), states.count(RUNNING), 0, states.count(FAILED) + states.count(DIVERGED)]
        counts[2] = expected - sum(counts)
        point = self.runner.point(name)
        chosen = (point.label if point is not None else UNDECIDED) if self.runner.runs.study.config.choosing else ""
        return [*(str(count or "") for count in counts), chosen, "", ""]

    def _run(self, run: Run) -> list[str]:
        state = self.states[run.id]
        if state != RUNNING:
            why = self.runner.state(run).why.splitlines()
            return [state, "", "", "", why[0][:60] if why else "", "", ""]
        numbers, total = self.latest.get(run.id, {}), length(run.recipe).batches
        batches = f"{int(numbers.get('batch', 0)):,}" + (f" of {total:,}" if total else "")
        losses = [f"{numbers[key]:.4f}" if key in numbers else "-" for key in ("loss", "validation_loss")]
        return ["", batches, "", "", "", *losses]

    def reasons(self) -> list[str]:
        """A line for each run that failed or diverged: why, and where its log is."""
        shown = [run for run in self.runs if self.states[run.id] in (FAILED, DIVERGED)]
        found = [self._reason(run) for run in shown[:MOST_SHOWN]]
        return [*found, *([f"and {len(shown) - MOST_SHOWN} more"] if len(shown) > MOST_SHOWN else [])]

    def _reason(self, run: Run) -> str:
        why = self.runner.state(run).why.splitlines()
        said = f": {why[0].rstrip('.')}" if why else ""
        return f"{run.id} {self.states[run.id]}{said}; log: {self.runner.folder.log(run)}"

    def as_dict(self) -> dict[str, Any]:
        """What `zoo study status --json` prints."""
        runs = [
            {
                "run": run.id,
                "architecture": run.architecture,
                "point": run.point.label,
                "seed": run.seed,
                "state": self.states[run.id],
                "why": self.runner.state(run).why,
                "folder": str(self.runner.folder.folder(run).path),
                **{key: self.latest.get(run.id, {}).get(key) for key in ("batch", "loss", "validation_loss")},
            }
            for run in self.runs
        ]
        choices = {name: getattr(self.runner.point(name), "label", None) for name in self.runner.runs.architectures}
        return {
            "study": self.runner.runs.study.config.name,
            "expected": self.runner.expected(),
            "counts": self.counts(),
            "time_left_s": self.time_left_s(),
            "chosen": choices,
            "runs": runs,
        }


class Screen:
    """Follows a runner: a live table on a terminal; elsewhere events, and a line a minute."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live = Live(console=self.console, refresh_per_second=2) if self.console.is_terminal else None
        self._told_at, self._said = time.monotonic(), ""

    def __enter__(self) -> "Screen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """An event; above the table where there is one."""
        self.console.print(clean(text))

    def follow(self, runner: Runner) -> None:
        """Show how far the runs are."""
        if self._live:
            progress = Progress(runner, runner.slots.running())
            parts = Group(Text(progress.headline()), progress.table(), Text(runner.slots.about(), style="dim"))
            self._live.update(cleaned(parts, self.console))
        elif time.monotonic() - self._told_at >= QUIET_S:
            self._told_at = time.monotonic()
            said = Progress(runner, runner.slots.running()).headline()
            if said != self._said:
                self._said = said
                self.say(said)
