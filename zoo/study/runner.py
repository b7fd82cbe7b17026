"""`zoo study run`: start the runs, follow them, choose the points, start the rest; resume wherever a stop left off.

Nothing is kept but what lies in the folders (state.py): after a SIGKILL the same command finds out what is done.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from zoo.child import plugin_options, python_module
from zoo.counting.run_cost import GPUS, step_size
from zoo.errors import ZooError
from zoo.evaluation.registry import make_tasks
from zoo.files import create, write_json
from zoo.study.config import StudyError
from zoo.study.expand import Point, Run, Runs, data_key
from zoo.study.kept import read_summary
from zoo.study.measuring import measure_speeds
from zoo.study.preload import PARENT, STOPPED
from zoo.study.preparation import read_failure, read_rows
from zoo.study.results import final_loss, flops_per_token, keep, refuse_other_data, rows_of, tokens_and_time
from zoo.study.sharing import begin, end
from zoo.study.slots import Ended, Job, Slots
from zoo.study.state import DONE, FAILED, State, StudyFolder, last_words, latest, refuse_other_settings
from zoo.study.statistics import Choice, choose

POLL_S = 0.5
MOST_KILLS = 5  # in a row without a batch more, before a run counts as failed
MEASURED_AFTER = 5  # batches, before the memory of a run on a GPU is believed
MEMORY_WORDS = ("out of memory", "OutOfMemory", "cannot allocate memory", "MemoryError")


class Interrupted(ZooError):
    """The study was stopped by a signal; finished runs and checkpoints are kept."""

    exit_code = STOPPED


class Runner:
    """One `zoo study run`.

    slots: where runs are started (`slots.Slots`, `ray_slots.RaySlots`).  follow: called with the runner after every
    look at the runs.  command, prepare: the commands that train a run and prepare its data; tests have cheap ones.
    scored: whether a run that is trained must have its scores to be done; a report shows the losses without them.
    """

    def __init__(
        self,
        runs: Runs,
        folder: StudyFolder,
        slots: Slots,
        follow: Callable[["Runner"], object] = lambda runner: None,
        say: Callable[[str], object] = lambda text: None,
        command: "Callable[[Runner, Run], list[str]] | None" = None,
        prepare: "Callable[[Runner, Run], list[str]] | None" = None,
        poll_s: float = POLL_S,
        scored: bool = True,
    ):
        self.runs, self.folder, self.slots, self.follow, self.say = runs, folder, slots, follow, say
        self._command, self._prepare, self._poll_s = command or train_command, prepare or prepare_command, poll_s
        config = runs.study.config
        self._scored = scored
        self.made_tasks = make_tasks(config.tasks) if config.tasks else []
        self.tasks = {task.label: task.version for task in self.made_tasks}
        self.states: dict[str, State] = {}
        self.started_at: dict[str, float] = {}
        self.kills: dict[str, tuple[int, int]] = {}  # run -> (kills in a row without progress, batches then)
        self.stopping = 0
        self._losses: dict[str, float | None] = {}
        self._rows: dict[str, str | None] = {}
        self._flops: dict[tuple[str, str], float] = {}
        self._numbers: dict[str, dict[str, float]] = {}

    def run(self, retry: bool = False) -> None:
        """Train until every run is done, failed or diverged.  retry: train those that failed before once more.

        Raises Interrupted after Ctrl-C or SIGTERM, OtherSettings or StudyError where it cannot start.
        """
        with self.folder.locked(), self._signals():
            refuse_other_settings(self.folder, self.all())
            if retry:
                for run in self.all():
                    if self.folder.state(run, self.tasks_of(run)).name == FAILED:
                        self.folder.forget(run)
            for run in self.all():
                if self.state(run).name == DONE:
                    keep(self.folder, run, self.tasks_of(run))
            self._refuse_other_data()
            if not all(self.state(run).ended for run in self.all()):
                self._refuse_missing_data()
            self._say_what_lacks_scores()
            self._note_needs()
            self.slots.keep_threads(self.folder.threads(self.slots.threads))
            try:
                self._prepare_data()
                self._loop()
                measure_speeds(self)
            finally:
                self.folder.running.unlink(missing_ok=True)
                self.slots.close()

    def all(self) -> list[Run]:
        """The runs of the study as far as they are known: those that choose, and those that count once it is chosen."""
        found = list(self.runs.choosing())
        for name in self.runs.architectures:
            point = self.point(name)
            if point is not None:
                found += self.runs.counting(name, point)
        return found

    def _refuse_other_data(self, prepared: Iterable[tuple[Run, str | None]] = ()) -> None:
        """Refuse runs of other rows.  prepared: runs to come with the rows that are there for them."""
        done = [run for run in self.all() if self.state(run).name == DONE]
        refuse_other_data(self.folder, [(run, self.rows(run)) for run in done], prepared)

    def missing_data(self) -> dict[str, str]:
        """Tasks whose data are not installed -> why, and the command that installs them."""
        found = {task.task: task.missing() for task in self.made_tasks}
        return {name: why for name, why in found.items() if why is not None}

    def _refuse_missing_data(self) -> None:
        """Raise StudyError if the data of a task are not installed, before hours of training end in that error."""
        for name, why in self.missing_data().items():
            raise StudyError(f"tasks: {name}: {why}")

    def _say_what_lacks_scores(self) -> None:
        """Say which runs that are trained have to be scored on further tasks; those without weights train again."""
        lacking = [run for run in self.all() if not self.state(run).ended and self.folder.kept(run) is not None]
        gone = [run for run in lacking if read_summary(self.folder.folder(run)) is None]
        if scored := len(lacking) - len(gone):
            self.say(f"{scored} runs are trained already, and are scored on tasks that they lack")
        for run in gone:
            self.say(f"{run.id}: lacks scores, and its weights were removed: it is trained again")

    def expected(self) -> int:
        """How many runs there will be in all."""
        config = self.runs.study.config
        choosing = len(config.choosing) * len(self.runs.points)
        return len(self.runs.architectures) * (choosing + len(config.counting))

    def choice(self, architecture: str) -> Choice | None:
        """The chosen point, None as long as runs that choose it are not over."""
        choosing = [run for run in self.runs.choosing() if run.architecture == architecture]
        if not all(self.state(run).ended for run in choosing):
            return None
        return self.choice_so_far(architecture)

    def choice_so_far(self, architecture: str) -> Choice:
        """What would be chosen now: from the points whose runs are all over; `losses` has no other points."""
        losses: dict[str, list[float | None]] = {}
        waiting = set()
        for run in self.runs.choosing():
            if run.architecture == architecture:
                state = self.state(run)
                losses.setdefault(run.point.label, []).append(self._loss(run) if state.name == DONE else None)
                waiting |= set() if state.ended else {run.point.label}
        over = {label: found for label, found in losses.items() if label not in waiting}
        return choose(over, {point.label: dict(point.values) for point in self.runs.points})

    def point(self, architecture: str) -> Point | None:
        """The point at which an architecture is judged, None as long as it is not chosen, or if none can be."""
        if not self.runs.study.config.choosing:
            return self.runs.points[0]
        found = self.choice(architecture)
        label = found.label if found is not None else None
        return next((point for point in self.runs.points if point.label == label), None)

    def state(self, run: Run) -> State:
        """What became of a run; one that has ended is not looked at again."""
        known = self.states.get(run.id)
        if known is None or not known.ended:
            self.states[run.id] = self.folder.state(run, self.tasks_of(run) if self._scored else {})
        return self.states[run.id]

    def tasks_of(self, run: Run) -> dict[str, int]:
        """Label -> version of the tasks that a run is scored on: none if it only chooses, since it is in no mean."""
        return {} if run.seed in self.runs.study.config.choosing else self.tasks

    def numbers(self, run: Run) -> dict[str, float]:
        """Tokens and seconds of a run that is done, from its summary, which is read once."""
        if run.id not in self._numbers:
            self._numbers[run.id] = tokens_and_time(self.folder, run)
        return self._numbers[run.id]

    def rows(self, run: Run) -> str | None:
        """A hash of the rows of a run that is done, which is read once."""
        if run.id not in self._rows:
            self._rows[run.id] = rows_of(self.folder, run)
        return self._rows[run.id]

    def flops_per_token(self, run: Run) -> float:
        """Training FLOPs of a token of a run; the same for every seed."""
        key = run.architecture, run.point.label
        if key not in self._flops:
            self._flops[key] = flops_per_token(run.recipe)
        return self._flops[key]

    def _loss(self, run: Run) -> float | None:
        if run.id not in self._losses:
            self._losses[run.id] = final_loss(self.folder, run)
        return self._losses[run.id]

    def _note_needs(self) -> None:
        """Estimates of each architecture's memory, which say how many runs a CPU has room for."""
        for name in self.runs.architectures:
            recipe = self.runs.recipes[name, self.runs.points[0].label]
            seq_len = recipe.seq_len
            rows, wanted = recipe.train.rows(seq_len), recipe.train.micro_batch
            micro = min(rows, wanted) if isinstance(wanted, int) else rows
            self.slots.estimates[name] = 2 * step_size(recipe, seq_len, micro, GPUS["h200"]).peak  # float32

    def _prepare_data(self) -> None:
        """Prepare each set of data once, before a run starts; finds it at once if it is there."""
        wanted: dict[str, Run] = {}
        for run in self.all():
            if not self.state(run).ended:
                wanted.setdefault(data_key(run), run)
        for number, run in enumerate(wanted.values(), start=1):
            self.say(f"preparing data {number} of {len(wanted)} (as {run.id} reads it)")
            self.folder.write_recipe(run)
            self.folder.prepared(run).unlink(missing_ok=True)
            log, code, kills = self.folder.logs / f"prepare-{number}.txt", None, 0
            while code is None or (code < 0 and kills < MOST_KILLS):  # a preparation that was killed goes on
                code = self.wait_for(self._prepare(self, run), log)
                kills += code < 0
            if code != 0:
                said = read_failure(self.folder.prepared(run)) or last_words(log)
                why = f"killed by {_signal_name(-code)}" if code < 0 else said or f"exit code {code}"
                raise StudyError(f"the data of {run.id} cannot be prepared: {why}")
            self._refuse_other_data([(run, read_rows(self.folder.prepared(run)))])

    def wait_for(self, command: list[str], log: Path, variables: Mapping[str, str] = {}) -> int:
        """Run a process while nothing else runs; it ends when the study is stopped.  Returns its exit code.

        variables: added to the environment of this process.  Raises Interrupted if the study is stopped.
        """
        with create(log) as file:
            environment = {**os.environ, **variables, PARENT: str(os.getpid())}
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        while process.poll() is None:
            if self.stopping:
                os.killpg(process.pid, signal.SIGTERM)  # also what it has just started, which does not watch it yet
                process.wait()
            time.sleep(min(self._poll_s, 0.2))
        self._leave_if_stopping()
        return process.returncode

    def _loop(self) -> None:
        while True:
            for ended in self.slots.ended():
                self._end(ended)
            if self.stopping:
                self.slots.stop()  # again: the signal may have come while a run was being started
                if not self.slots.running():
                    self._leave_if_stopping()
            else:
                waiting = self._start()
                if not waiting and not self.slots.running():
                    self.follow(self)
                    return
            self.slots.measure([id for id in self.slots.running() if self._batches(id) >= MEASURED_AFTER])
            self.follow(self)
            time.sleep(self._poll_s)

    def _start(self) -> list[Run]:
        """Start the runs that there is room for; returns those that wait."""
        running = set(self.slots.running())
        waiting = [run for run in self.all() if run.id not in running and not self.state(run).ended]
        for run in list(waiting):
            job = self._job(run)
            if not self.slots.room(job):
                break
            self.folder.write_recipe(run)
            begin(self.folder, run)
            self.slots.start(job)
            self.started_at[run.id] = time.monotonic()
            waiting.remove(run)
            self._write_running()
        return waiting

    def _job(self, run: Run) -> Job:
        return Job(run.id, tuple(self._command(self, run)), self.folder.log(run), run.architecture)

    def _write_running(self) -> None:
        write_json(self.folder.running, {"pid": os.getpid(), "runs": self.slots.running()})

    def _batches(self, id: str) -> int:
        return int(latest(self.folder.runs / id / "metrics.jsonl").get("batch", 0))

    def _end(self, ended: Ended) -> None:
        """Note how a run ended. One that was killed, or ran out of memory next to others, waits for another start."""
        run = next(run for run in self.all() if run.id == ended.id)
        end(self.folder, run, ended)
        state = self.folder.state(run, self.tasks_of(run))
        self.states[run.id] = state
        self._write_running()
        if state.name == FAILED and ended.shared and _is_memory(state.why) and self.slots.fewer(ended.device):
            why = "out of memory while other runs share the device"
            self.say(f"{run.id}: {why}; waits, and one run less at a time from now on")
            self.folder.forget(run)
            self.states[run.id] = self.folder.state(run, self.tasks_of(run))
        elif state.ended:
            if state.name == DONE:
                keep(self.folder, run, self.tasks_of(run))
                self._refuse_other_data()
            self.say(f"{run.id}: {state.name}{f': {state.why}' if state.why else ''}")
        elif self.stopping:
            return
        elif ended.code < 0 or ended.code == STOPPED:
            self._killed(run, ended)
        else:
            why = last_words(self.folder.log(run)) or "without a word"
            self._fail(run, ended.why or f"ended with exit code {ended.code}: {why}")

    def _killed(self, run: Run, ended: Ended) -> None:
        batches = self._batches(run.id)
        times, before = self.kills.get(run.id, (0, -1))
        times = times + 1 if batches <= before else 1
        self.kills[run.id] = times, batches
        how = ended.why or ("stopped" if ended.code == STOPPED else f"killed by {_signal_name(-ended.code)}")
        if times >= MOST_KILLS:
            self._fail(run, f"{how} {times} times in a row without a batch more; is there enough memory?")
            return
        self.say(f"{run.id}: {how} after batch {batches}; goes on")

    def _fail(self, run: Run, why: str) -> None:
        self.folder.fail(run, why)
        self.states[run.id] = State(FAILED, why)
        self.say(f"{run.id}: failed: {why}")

    def _leave_if_stopping(self) -> None:
        if self.stopping:
            done = sum(state.name == DONE for state in self.states.values())
            raise Interrupted(f"stopped with {done} of {self.expected()} runs done; the same command continues")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and SIGHUP let the runs save and end; Ctrl-C again ends them at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}

        def handle(number: int, frame: object) -> None:
            again = self.stopping and number == signal.SIGINT
            self.stopping += 1
            if self.stopping == 1 or again:
                self.slots.stop(kill=bool(again))

        for number in before:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train_command(runner: Runner, run: Run) -> list[str]:
    """The process that trains and scores a run."""
    folder, tasks = runner.folder, runner.runs.study.config.tasks if runner.tasks_of(run) else []
    arguments = [
        str(folder.recipe(run)),
        "--run-dir",
        str(folder.folder(run).path),
        "--outcome",
        str(folder.outcome(run)),
    ]
    return python_module("zoo.study.child", [*arguments, "--tasks", json.dumps(tasks), *plugin_options()])


def prepare_command(runner: Runner, run: Run) -> list[str]:
    """The process that prepares the data of a run, and checks that its tasks can be given."""
    folder, tasks = runner.folder, runner.runs.study.config.tasks
    arguments = [str(folder.recipe(run)), "--record", str(folder.prepared(run)), "--tasks", json.dumps(tasks)]
    return python_module("zoo.study.preparation", [*arguments, *plugin_options()])


def _is_memory(why: str) -> bool:
    return any(word.casefold() in why.casefold() for word in MEMORY_WORDS)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
