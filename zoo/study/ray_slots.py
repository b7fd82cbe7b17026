"""Where the runs of a study are tasks of a Ray cluster (extra `study`): `zoo study run --on ray`.

Every node must see the working directory and the study's folder under the same paths, as a shared file system gives it.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.extras import install_command
from zoo.study.config import StudyError
from zoo.study.preload import STOPPED, start_process
from zoo.study.slots import THREADS, Ended, Job

POLL_S = 0.2


class MissingRay(StudyError):
    """Ray is not installed."""

    exit_code = 2


def run_command(command: Sequence[str], log: str, environment: dict[str, str], folder: str) -> tuple[int, str]:
    """Run a process on a node and wait for it; returns its exit code and the node.

    Ray cancels a task by KeyboardInterrupt: the process then gets SIGTERM, saves and ends.
    """
    import ray

    node = ray.get_runtime_context().get_node_id()
    process = start_process(command, Path(log), {**os.environ, **environment}, folder)
    try:
        return _wait(process), node
    except KeyboardInterrupt:
        process.terminate()
        _wait(process)
        return STOPPED, node


def _wait(process: subprocess.Popen) -> int:
    """Wait in short steps: Ray interrupts between two lines of Python, and not a wait in the system."""
    while (code := process.poll()) is None:
        time.sleep(POLL_S)
    return code


class RaySlots:
    """Tasks of a Ray cluster, with the interface of `slots.Slots`.

    at_once: runs that share one GPU, or runs at a time where the cluster has none; None: one a GPU, or one a core.
    address: of the cluster; None: that of RAY_ADDRESS, or a new one on this machine.  `nodes`: ids of those on which
    runs have ended.
    """

    def __init__(self, at_once: int | None, address: str | None = None):
        if find_spec("ray") is None:
            raise MissingRay(f"--on ray needs ray; to install it: {install_command('study')}")
        import ray

        self.ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            try:
                ray.init(address=address, log_to_driver=False, logging_level="error", include_dashboard=False)
            except Exception as error:  # Ray raises many kinds, for one reason
                raise StudyError(f"--on ray: no cluster at {address or 'this machine'}: {error}") from error
        resources = ray.cluster_resources()
        self.n_gpus, self.cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self.n_nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        self.at_once = at_once
        self.estimates: dict[str, float] = {}
        self.nodes: set[str] = set()
        self._threads: int | None = None
        self._running: dict[str, Any] = {}
        self._stopped: set[str] = set()
        self._task = ray.remote(max_retries=0)(run_command)

    @property
    def threads(self) -> int:
        """Threads of each run."""
        if self._threads is not None:
            return self._threads
        return 1 if self.n_gpus else max(1, self.cores // self.limit())

    def keep_threads(self, number: int) -> None:
        """Give every run this many threads: another number gives other last digits."""
        self._threads = number

    def limit(self) -> int:
        """Runs at a time."""
        return max(1, self.n_gpus * (self.at_once or 1)) if self.n_gpus else self.at_once or self.cores

    def about(self) -> str:
        """Where runs are started, and how many at a time, in words."""
        what = f"{self.n_gpus} GPUs" if self.n_gpus else f"{self.cores} cores"
        return f"Ray, {self.n_nodes} nodes with {what}, up to {self.limit()} runs at a time"

    def room(self, job: Job) -> bool:
        """Whether the job can be handed over now."""
        return len(self._running) < self.limit()

    def start(self, job: Job) -> None:
        """Hand a job to the cluster, which chooses the node."""
        environment = {name: str(self.threads) for name in THREADS}
        environment |= {name: os.environ[name] for name in ("PYTHONPATH", "ZOO_DATA_CACHE") if name in os.environ}
        share = {"num_gpus": 1 / (self.at_once or 1)} if self.n_gpus else {}
        task = self._task.options(num_cpus=self.threads, name=job.id, **share)
        self._running[job.id] = task.remote(job.command, str(job.log.absolute()), environment, os.getcwd())

    def measure(self, progressed: Sequence[str]) -> None:
        """Ray shares GPUs by `jobs`; nothing is measured."""

    def ended(self) -> list[Ended]:
        """The jobs that ended since the last call; with code -9 where the node or its worker was lost."""
        found = []
        for id, task in list(self._running.items()):
            done, _ = self.ray.wait([task], timeout=0)
            if done:
                del self._running[id]
                self._stopped.discard(id)
                found.append(Ended(id, self._code(task)))
        return found

    def _code(self, task: Any) -> int:
        try:
            code, node = self.ray.get(task)
            self.nodes.add(node)
            return int(code)
        except self.ray.exceptions.TaskCancelledError:
            return STOPPED
        except self.ray.exceptions.RayError:
            return -9

    def running(self) -> list[str]:
        """Ids of the jobs that have been handed over and not ended."""
        return list(self._running)

    def fewer(self, device: str | None) -> bool:
        """Always False: Ray decides what shares a GPU."""
        return False

    def stop(self, kill: bool = False) -> None:
        """Ask every job to save and end, once, or end it at once."""
        for id, task in self._running.items():
            if id in self._stopped and not kill:
                continue
            self._stopped.add(id)
            with contextlib.suppress(Exception):  # it may have ended
                self.ray.cancel(task, force=kill)

    def close(self) -> None:
        """End Ray if it was started here."""
        if self._own:
            self.ray.shutdown()
