"""Where the runs of a study are tasks of a Ray cluster (extra `study`): `zoo study run --on ray`.

Every node must see the working directory and the study's folder under the same paths, as a shared file system gives it.
"""

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.extras import install_command
from zoo.study.config import StudyError
from zoo.study.preload import STOPPED, start_process
from zoo.study.slots import THREADS, Ended, Job

POLL_S = 0.2
LOOK_S = 5.0  # between two looks at which nodes there are
CONNECT_S = 10.0
ANSWER_S = 30.0  # of the head node; Ray itself ends the process after 60
LOST = -9  # the code of a run whose node or worker was lost: it goes on from its checkpoint


NOT_STARTED = (
    "could not be started on a node of the cluster, which needs the same Python environment as this machine, and the "
    "working directory under the same path"
)


LOST_CLUSTER = (
    "--on ray: the head node of the cluster, or the node on which this study was started, was lost; run the same "
    "command again on a cluster: finished runs are kept, the others go on from their checkpoints"
)


class ClusterLost(StudyError):
    """The head node of the cluster, or the node on which the study was started, is gone."""


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


def _refuse_no_one_there(address: str | None) -> None:
    """Raise StudyError if nothing listens at a host and port: Ray would try for many minutes, without a word."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # auto, local, or none
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise StudyError(
            f"--on ray: no cluster at {address}: {why}; the address is the one that ray start --head printed"
        ) from error


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
            _refuse_no_one_there(address)
            try:
                ray.init(address=address, log_to_driver=False, logging_level="error", include_dashboard=False)
            except Exception as error:  # Ray raises many kinds, for one reason
                raise StudyError(f"--on ray: no cluster at {address or 'this machine'}: {error}") from error
        self._look()
        self._on_gpus = self.n_gpus > 0  # for good: a run whose GPU was lost waits for another one
        self.at_once = at_once
        self.estimates: dict[str, float] = {}
        self.nodes: set[str] = set()
        self._threads: int | None = None
        self._running: dict[str, Any] = {}
        self._cores_of: dict[str, int] = {}
        self._started: dict[str, float] = {}
        self._stopped: set[str] = set()
        self._task = ray.remote(max_retries=0)(run_command)

    def _look(self) -> None:
        """Note which nodes there are: they come and go."""
        nodes = [node["Resources"] for node in self._nodes() if node["Alive"]]
        self.n_nodes, self._looked_at = len(nodes), time.monotonic()
        self.n_gpus = int(sum(node.get("GPU", 0) for node in nodes))
        self.cores = max(1, int(sum(node.get("CPU", 0) for node in nodes)))
        self.largest = max(1, int(max((node.get("CPU", 0) for node in nodes), default=0)))  # cores of one node

    def _nodes(self) -> list[dict[str, Any]]:
        """`ray.nodes()`, which waits a minute for a head node that is lost, and then ends this process."""
        found: list[list[dict[str, Any]]] = []

        def ask() -> None:
            with contextlib.suppress(Exception):  # no answer
                found.append(self.ray.nodes())

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(ANSWER_S)
        if not found:
            raise self._lost()
        return found[0]

    def _lost(self) -> ClusterLost:
        self._own = False  # ending Ray would wait for the head node as well
        return ClusterLost(LOST_CLUSTER)

    @property
    def threads(self) -> int:
        """Threads of each run: no more than one node has cores."""
        if self._threads is not None:
            return self._threads
        return 1 if self._on_gpus else max(1, min(self.largest, self.cores // self.limit()))

    def keep_threads(self, number: int) -> None:
        """Give every run this many threads: another number gives other last digits."""
        self._threads = number

    def limit(self) -> int:
        """Runs at a time."""
        if self._on_gpus:
            return max(1, self.n_gpus) * (self.at_once or 1)
        return self.at_once or max(1, self.cores // (self._threads or 1))

    def about(self) -> str:
        """Where runs are started, and how many at a time, in words."""
        what = f"{self.n_gpus} GPUs" if self._on_gpus else f"{self.cores} cores"
        return f"Ray, {self.n_nodes} nodes with {what}, up to {self.limit()} runs at a time"

    def room(self, job: Job) -> bool:
        """Whether the job can be handed over now."""
        return len(self._running) < self.limit()

    def start(self, job: Job) -> None:
        """Hand a job to the cluster, which chooses the node."""
        environment = {name: str(self.threads) for name in THREADS}
        environment |= {name: os.environ[name] for name in ("PYTHONPATH", "ZOO_DATA_CACHE") if name in os.environ}
        share = {"num_gpus": 1 / (self.at_once or 1)} if self._on_gpus else {}
        # Threads that a study began with elsewhere may be more than any node here has cores: Ray would wait for ever.
        self._cores_of[job.id] = min(self.threads, self.largest)
        task = self._task.options(num_cpus=self._cores_of[job.id], name=job.id, **share)
        self._started[job.id] = time.monotonic()
        self._running[job.id] = task.remote(job.command, str(job.log.absolute()), environment, os.getcwd())

    def measure(self, progressed: Sequence[str]) -> None:
        """Ray shares GPUs by `jobs`; nothing is measured."""

    def ended(self) -> list[Ended]:
        """The jobs that ended since the last call; with code LOST where the node or its worker was lost.

        Raises ClusterLost if no further job can be started from here.
        """
        if time.monotonic() - self._looked_at > LOOK_S:
            self._look()
            self._take_back()
        found = []
        for id, task in list(self._running.items()):
            done, _ = self.ray.wait([task], timeout=0)
            if done:
                del self._running[id]
                self._stopped.discard(id)
                found.append(self._with_sharing(self._ended(id, task)))
        return found

    def _with_sharing(self, ended: Ended) -> Ended:
        """How long the run took, waiting for its node included, and how many runs shared its device.

        Ray gives a whole GPU to one run. Which runs it puts on the same GPU, or the same cores, is not known here.
        """
        alone = self._on_gpus and (self.at_once or 1) == 1
        seconds = time.monotonic() - self._started.pop(ended.id)
        return replace(ended, seconds=seconds, runs_on_device=1.0 if alone else None)

    def _take_back(self) -> None:
        """Cancel what waits for a node that was lost, and that no other is large enough for: it is started again."""
        for id, cores in self._cores_of.items():
            if id in self._running and cores > self.largest:
                with contextlib.suppress(Exception):  # it may have ended
                    self.ray.cancel(self._running[id])

    def _ended(self, id: str, task: Any) -> Ended:
        """How a task that is over ended."""
        raised = self.ray.exceptions
        try:
            code, node = self.ray.get(task)
            self.nodes.add(node)
            return Ended(id, int(code))
        except raised.TaskCancelledError:
            return Ended(id, STOPPED)
        except raised.RayTaskError as error:
            return Ended(id, 1, why=f"{NOT_STARTED}: {type(error.cause or error).__name__}: {error.cause or error}")
        except raised.LocalRayletDiedError as error:  # no further job can be started from here
            raise self._lost() from error
        except raised.OutOfMemoryError:
            return Ended(id, LOST, why="ended by Ray because its node was short of memory")
        except raised.RayError as error:
            return Ended(id, LOST, why=f"lost with its node or its Ray worker ({type(error).__name__})")

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
