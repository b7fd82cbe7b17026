"""`zoo study run --on ray` on a local cluster of two nodes; the runs are made by rule."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.zoo.study import drive
from tests.zoo.study.conftest import runner_of
from zoo.study.config import StudyError
from zoo.study.findings import findings
from zoo.study.preload import STOPPED
from zoo.study.ray_slots import LOST, LOST_CLUSTER, NOT_STARTED, MissingRay, RaySlots, _refuse_no_one_there
from zoo.study.slots import Ended, Job
from zoo.study.state import DONE, FAILED, StudyFolder, latest

HERE = find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HERE, reason="ray is not installed: extra `study`")
PATIENCE_S = 300  # of a loaded machine for a node to start


@pytest.mark.skipif(HERE, reason="ray is installed, so its absence cannot be tried")
def test_without_ray_the_command_says_what_to_install():
    with pytest.raises(MissingRay, match=r"--on ray needs ray; to install it: .* 'ray>="):
        RaySlots(None)


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes with a core each."""
    yield from _cluster(monkeypatch, 1)


@pytest.fixture
def uneven(monkeypatch):
    """A node with one core, and a second one with two."""
    yield from _cluster(monkeypatch, 2)


def _cluster(monkeypatch, cores_of_second: int):
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", str(PATIENCE_S))
    monkeypatch.setenv("RAY_agent_register_timeout_ms", str(1000 * PATIENCE_S))
    monkeypatch.setenv("RAY_TMPDIR", tempfile.mkdtemp(prefix="zoo-ray-", dir="/tmp"))  # sockets have short paths
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=cores_of_second)
    yield made
    ray.shutdown()
    made.shutdown()


def wait(slots: RaySlots, until) -> list:
    found, end = [], time.monotonic() + PATIENCE_S
    while not until(found):
        assert time.monotonic() < end
        time.sleep(0.1)
        found += slots.ended()
    return found


def on_cluster(test):
    """Marks of a test that starts a cluster, about which Ray warns a lot."""
    marks = (needs_ray, pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.filterwarnings("ignore"))
    for mark in marks:
        test = mark(test)
    return test


@on_cluster
def test_a_study_runs_on_two_nodes_loses_one_and_ends_with_the_same_results(cluster, make_runner, tmp_path):
    whole = make_runner(seeds=[1, 2, 3], out=str(tmp_path / "whole"))
    whole.run()
    slots = RaySlots(None, cluster.address)
    assert slots.about() == "Ray, 2 nodes with 2 cores, up to 2 runs at a time"

    log = tmp_path / "stopped.txt"
    code = "import time; print('begins', flush=True); time.sleep(600)"
    slots.start(Job("long", (sys.executable, "-c", code), log, "any"))
    wait(slots, lambda found: log.exists() and "begins" in log.read_text())
    slots.stop()
    (ended,) = wait(slots, bool)
    assert ended.code in (130, -signal.SIGTERM)

    runner = make_runner(batch_s=0.3, seeds=[1, 2, 3])
    runner.slots = slots
    lost = []

    def lose_a_node(runner) -> None:
        if len(slots.nodes) == 2 and not lost:
            cluster.remove_node(cluster.second, allow_graceful=False)
            lost.append(True)

    runner.follow = lose_a_node
    runner.run()
    assert lost
    assert [runner.state(run).name for run in runner.all()] == [DONE] * 6
    assert findings(runner)["results"] == findings(whole)["results"]
    kept = [runner.folder.kept(run)["measured"]["runs_on_device"] for run in runner.all()]
    assert kept == [None] * 6, "which runs shared a node is not known"


@pytest.mark.parametrize(
    ("on_gpus", "at_once", "expected"), [(True, None, 1.0), (True, 1, 1.0), (True, 2, None), (False, 1, None)]
)
def test_only_a_whole_gpu_is_known_to_have_one_run(on_gpus, at_once, expected):
    slots = RaySlots.__new__(RaySlots)
    slots._on_gpus, slots.at_once, slots._started = on_gpus, at_once, {"a": time.monotonic() - 5}
    ended = slots._with_sharing(Ended("a", 0))
    assert ended.runs_on_device == expected
    assert 5 <= ended.seconds < 60


def process_of(run_dir: Path) -> int | None:
    """The process that trains into a folder."""
    for found in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(run_dir) in found.read_bytes().split(b"\0") and int(found.parent.name) != os.getpid():
                return int(found.parent.name)
    return None


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@on_cluster
def test_a_killed_run_and_a_killed_worker_of_ray_go_on_and_end_with_the_same_results(cluster, make_runner, tmp_path):
    whole = make_runner(seeds=[1, 2, 3], out=str(tmp_path / "whole"))
    whole.run()
    said = []
    runner = make_runner(batch_s=0.5, seeds=[1, 2, 3])
    runner.slots, runner.say = RaySlots(None, cluster.address), said.append
    killed: dict[str, str] = {}

    def kill(runner) -> None:
        """The process of the first run, then Ray's worker that started the second."""
        for run in runner.all():
            if len(killed) < 2 and run.id not in killed and runner._batches(run.id) >= 2:
                pid = process_of(runner.folder.folder(run).path)
                if pid is not None:
                    what = "worker" if killed else "run"
                    with contextlib.suppress(OSError):
                        os.kill(parent_of(pid) if what == "worker" else pid, signal.SIGKILL)
                        killed[run.id] = what

    runner.follow = kill
    runner.run()
    assert sorted(killed.values()) == ["run", "worker"]
    for id, what in killed.items():
        how = "killed by SIGKILL" if what == "run" else "lost with its node or its Ray worker (WorkerCrashedError)"
        assert any(text.startswith(f"{id}: {how} after batch ") for text in said), said
    assert [runner.state(run).name for run in runner.all()] == [DONE] * 6
    assert findings(runner)["results"] == findings(whole)["results"]


def wait_for_a_batch(folder: StudyFolder, process: subprocess.Popen) -> None:
    """Wait until a run of a study that a process works on has trained two batches."""
    end = time.monotonic() + PATIENCE_S
    while not any(latest(each).get("batch", 0) >= 2 for each in folder.runs.glob("*/metrics.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)


@on_cluster
def test_a_study_that_is_killed_goes_on(cluster, make_runner, write_study, tmp_path):
    whole = make_runner(seeds=[1, 2, 3], out=str(tmp_path / "whole"))
    whole.run()
    path = write_study(seeds=[1, 2, 3])
    folder = runner_of(path).folder

    def start(batch_s: str) -> subprocess.Popen:
        command = [sys.executable, drive.__file__, str(path), batch_s, cluster.address]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = start("0.5")
    wait_for_a_batch(folder, killed)
    killed.kill()
    killed.communicate()
    assert len(list(folder.outcomes.iterdir())) < 6
    again = start("0.01")
    out, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, out
    assert json.loads(out.splitlines()[-1]) == json.loads(json.dumps(findings(whole)["results"]))


@on_cluster
def test_a_study_whose_cluster_is_lost_says_so_and_goes_on_elsewhere(cluster, make_runner, write_study, tmp_path):
    whole = make_runner(seeds=[1, 2, 3], out=str(tmp_path / "whole"))
    whole.run()
    path = write_study(seeds=[1, 2, 3])
    runner = runner_of(path)
    command = [sys.executable, drive.__file__, str(path), "0.5", cluster.address]
    with open(tmp_path / "said.txt", "w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    wait_for_a_batch(runner.folder, process)
    cluster.remove_node(cluster.head_node, allow_graceful=False)
    assert process.wait(timeout=PATIENCE_S) == 1
    lines = (tmp_path / "said.txt").read_text().splitlines()
    assert LOST_CLUSTER in lines
    assert not any("Traceback" in line for line in lines)
    assert not any(each.read_text().startswith('{"state": "failed"') for each in runner.folder.outcomes.iterdir())
    runner.run()
    assert findings(runner)["results"] == findings(whole)["results"]


@on_cluster
def test_more_threads_than_a_node_has_cores_do_not_wait_for_ever(cluster, make_runner):
    slots = RaySlots(1, cluster.address)
    assert slots.threads == 1, "no node has the two cores of the cluster"
    runner = make_runner(seeds=[1], recipes=["full"])
    runner.folder.make()
    runner.folder.threads(2)  # as the study began on a machine with two cores
    runner.slots = slots
    runner.run()
    assert slots.threads == 2
    assert [runner.state(run).name for run in runner.all()] == [DONE]


@on_cluster
def test_what_waits_for_a_large_node_that_is_lost_is_started_elsewhere(uneven, tmp_path):
    slots = RaySlots(2, uneven.address)
    slots.keep_threads(2)
    sleeps = "import time; print('begins', flush=True); time.sleep(600)"
    logs = [tmp_path / "first.txt", tmp_path / "second.txt"]
    for log in logs:
        slots.start(Job(log.stem, (sys.executable, "-c", sleeps), log, "any"))
    wait(slots, lambda found: any(log.exists() and "begins" in log.read_text() for log in logs))
    uneven.remove_node(uneven.second, allow_graceful=False)
    found = {ended.id: ended for ended in wait(slots, lambda found: len(found) == 2)}
    began = next(log.stem for log in logs if log.exists())
    assert found[began].code == LOST
    assert found[began].why.startswith("lost with its node or its Ray worker (")
    (waited,) = found.keys() - {began}
    assert found[waited].code == STOPPED
    slots.start(Job("again", (sys.executable, "-c", "pass"), tmp_path / "again.txt", "any"))
    (ended,) = wait(slots, bool)
    assert ended.code == 0
    slots.close()


@on_cluster
def test_a_run_that_a_node_cannot_start_fails_with_the_reason(cluster, make_runner, monkeypatch):
    """As where a node lacks the working directory."""
    runner = make_runner(seeds=[1], recipes=["full"])
    runner.slots = slots = RaySlots(None, cluster.address)
    monkeypatch.setattr("zoo.study.ray_slots.os.getcwd", lambda: "/no/such/folder")
    runner.run()
    state = runner.state(runner.all()[0])
    assert state.name == FAILED
    assert state.why == f"{NOT_STARTED}: FileNotFoundError: [Errno 2] No such file or directory: '/no/such/folder'"
    assert slots.nodes == set()


@pytest.mark.parametrize("address", ["{}", "ray://{}"])
def test_an_address_at_which_nothing_listens_is_refused_at_once(address):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        there = address.format(f"127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(StudyError, match=r"--on ray: no cluster at .*: Connection refused; the address is the one"):
            _refuse_no_one_there(there)


@pytest.mark.parametrize("address", [None, "auto", "local"])
def test_an_address_without_a_port_is_left_to_ray(address):
    _refuse_no_one_there(address)


def test_a_port_that_is_none_is_refused():
    with pytest.raises(StudyError, match=r"no cluster at 127\.0\.0\.1:99999"):
        _refuse_no_one_there("127.0.0.1:99999")
