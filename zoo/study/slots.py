"""Where the runs of a study are processes: on the cores of this machine, or on its GPUs. No torch.

On GPUs the first run has a GPU for itself until its memory has been measured; then as many runs share each GPU as fit.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo import processes
from zoo.memory import free_host_bytes
from zoo.study.gpus import Gpu, Mps
from zoo.study.preload import Forked, Preloaded, start_process

GIB = 2**30
PROCESS_BYTES = 1.2 * GIB  # Python, torch and Composer, of each process
USABLE = 0.92  # share of a memory that runs may fill
SPARE = 1.1  # a run's peak may come after it was measured
CORES_PER_GPU_RUN = 1
MOST_THREADS_ON_GPU = 4
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A process to start.  kind: the architecture, whose runs need the same memory; need_bytes: the estimate of it."""

    id: str
    command: tuple[str, ...]
    log: Path
    kind: str
    need_bytes: float = 0.0


@dataclass(frozen=True)
class Ended:
    """A job that ended.  code: its exit code, of a signal the negative number.  device, shared: where, and whether
    another run was there as well.  why: what ended it, in words, where that is known better than by the code.
    seconds: how long it ran.  runs_on_device: how many jobs were on its device meanwhile, itself included, as a mean
    over that time; None if that is not known."""

    id: str
    code: int
    device: str | None = None
    shared: bool = False
    why: str = ""
    seconds: float = 0.0
    runs_on_device: float | None = None


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen | Forked
    device: Gpu | None = None
    used_before: int = 0
    seconds: float = 0.0
    run_seconds: float = 0.0  # the sum of the seconds of all jobs on its device meanwhile


class Slots:
    """Processes on this machine.

    at_once: runs at a time (on each GPU), None to find out.  gpus: those to use; none: the CPU.
    """

    def __init__(self, at_once: int | None, gpus: Sequence[Gpu] = (), cores: int | None = None, mps: Mps | None = None):
        self.gpus, self.cores = list(gpus), cores or processes.cores()
        self.at_once, self.mps = at_once, mps
        self.needs: dict[str, float] = {}  # kind -> measured bytes of one run on a GPU
        self.estimates: dict[str, float] = {}
        self.most: dict[str | None, int] = {}  # device -> runs at a time that memory has allowed
        self._threads: int | None = None
        self._preloaded: Preloaded | None = None
        self._running: dict[str, _Running] = {}
        self._counted_at = time.monotonic()

    @property
    def threads(self) -> int:
        """Threads of each run."""
        if self._threads is not None:
            return self._threads
        if self.gpus:  # they only feed the GPU
            return max(1, min(MOST_THREADS_ON_GPU, self.cores // len(self.gpus)))
        return max(1, self.cores // self.limit())

    def keep_threads(self, number: int) -> None:
        """Give every run this many threads: another number gives other last digits."""
        self._threads = number

    def limit(self) -> int:
        """Runs at a time: all GPUs together, as far as that is known."""
        if not self.gpus:
            if self.at_once is not None:
                return self.at_once
            need = max(self.estimates.values(), default=0.0) + PROCESS_BYTES
            return max(1, min(self.cores, int(USABLE * total_memory() / need), self.most.get(None, self.cores)))
        return sum(self._limit_of(gpu) for gpu in self.gpus)

    def _limit_of(self, gpu: Gpu) -> int:
        if self.at_once is not None:
            return self.at_once
        if not self.needs:
            return 1
        cores = max(1, self.cores // len(self.gpus) // CORES_PER_GPU_RUN)
        fitting = int(USABLE * gpu.total_bytes / max(1.0, max(self.needs.values()) * SPARE))
        return max(1, min(cores, fitting, self.most.get(gpu.id, cores)))

    def about(self) -> str:
        """Where runs are started, and how many at a time, in words."""
        if not self.gpus:
            many = self.threads
            return f"CPU, {self.limit()} runs at a time of {many} thread{'s' * (many != 1)}"
        where = f"{len(self.gpus)} x {self.gpus[0].name}"
        if self.at_once is None and not self.needs:
            return f"{where}; the first run is measured, then as many share a GPU as fit"
        shared = ", shared through MPS" if self.mps is not None and self.mps.active else ""
        return f"{where}, up to {self.limit()} runs at a time{shared}"

    def room(self, job: Job) -> bool:
        """Whether the job can start now."""
        return self._device_for(job)[0]

    def _device_for(self, job: Job) -> tuple[bool, Gpu | None]:
        if not self.gpus:
            return len(self._running) < self.limit(), None
        if self.at_once is None and not self.needs:  # the run that is measured is alone
            return not self._running, self.gpus[0]
        for gpu in sorted(self.gpus, key=lambda gpu: len(self._on(gpu))):  # those with the fewest runs in turn
            there = self._on(gpu)
            if len(there) < self._limit_of(gpu) and self._fits(job, there, gpu):
                return True, gpu
        return False, None

    def _fits(self, job: Job, there: list[_Running], gpu: Gpu) -> bool:
        if self.at_once is not None or not there:
            return True
        needed = sum(self._need(each.job) for each in there) + self._need(job)
        return needed * SPARE <= USABLE * gpu.total_bytes

    def _need(self, job: Job) -> float:
        """Bytes of a run on a GPU: measured for its architecture, else scaled from another one's by the estimates."""
        if job.kind in self.needs:
            return self.needs[job.kind]
        kind, measured = max(self.needs.items(), key=lambda pair: pair[1])
        own, other = self.estimates.get(job.kind), self.estimates.get(kind)
        return measured * max(1.0, own / other) if own and other else measured

    def _on(self, gpu: Gpu | None) -> list[_Running]:
        return [each for each in self._running.values() if each.device == gpu]

    def _count(self) -> None:
        """Add the time since the last call to every job: which of them share a device changes only after a call."""
        now = time.monotonic()
        passed, self._counted_at = now - self._counted_at, now
        for each in self._running.values():
            each.seconds += passed
            each.run_seconds += passed * len(self._on(each.device))

    def start(self, job: Job) -> None:
        """Start a job for which there is room. Its output is appended to its log."""
        _, gpu = self._device_for(job)
        environment = {**os.environ, **dict.fromkeys(THREADS, str(self.threads))}
        if gpu is not None:
            environment |= {"CUDA_VISIBLE_DEVICES": gpu.id, **(self.mps.environment() if self.mps else {})}
        if gpu is None:
            if self._preloaded is None:
                self._preloaded = Preloaded(environment)
            process = self._preloaded.start(job.id, list(job.command), job.log, environment)
        else:
            process = start_process(list(job.command), job.log, environment)
        before = gpu.used_bytes() if gpu is not None else 0
        self._count()
        self._running[job.id] = _Running(job, process, gpu, before)

    def measure(self, progressed: Sequence[str]) -> None:
        """Note the GPU memory of runs that have a GPU for themselves.  progressed: ids that trained some batches."""
        for id, running in self._running.items():
            if running.device is None or len(self._on(running.device)) > 1:
                continue
            used = running.device.used_bytes() - running.used_before
            known = self.needs.get(running.job.kind, 0.0)
            if used > known and (known or id in progressed):
                self.needs[running.job.kind] = float(used)

    def ended(self) -> list[Ended]:
        """The jobs that ended since the last call."""
        self._count()
        found = []
        for id, running in list(self._running.items()):
            code = running.process.poll()
            if code is not None:
                device = running.device.id if running.device is not None else None
                shared = len(self._on(running.device)) > 1
                mean = running.run_seconds / running.seconds if running.seconds else None
                found.append(Ended(id, code, device, shared, seconds=running.seconds, runs_on_device=mean))
                del self._running[id]
        return found

    def running(self) -> list[str]:
        """Ids of the jobs that have started and not ended."""
        return list(self._running)

    def fewer(self, device: str | None) -> bool:
        """Allow one run less at a time on a device, after memory ran out; whether that is possible."""
        if self.at_once is not None:
            return False
        gpu = next((gpu for gpu in self.gpus if gpu.id == device), None)
        now = self.limit() if gpu is None else self._limit_of(gpu)
        self.most[device] = max(1, now - 1)
        return now > 1

    def stop(self, kill: bool = False) -> None:
        """Ask every job to save and end, or end it at once."""
        for running in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                running.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

    def close(self) -> None:
        """End the processes that serve the runs."""
        if self._preloaded is not None:
            self._preloaded.close()
            self._preloaded = None
        if self.mps is not None:
            self.mps.close()


def total_memory() -> float:
    """Bytes of memory that processes started now can have; 8 GiB where the system does not say."""
    found = free_host_bytes()
    return 8.0 * GIB if found is None else float(found)
