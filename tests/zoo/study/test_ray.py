"""`zoo study run --on ray` on a local cluster of two nodes; the runs are made by rule."""

import os
import signal
import sys
import tempfile
import time
from importlib.util import find_spec

import pytest

from zoo.study.findings import findings
from zoo.study.ray_slots import MissingRay, RaySlots
from zoo.study.slots import Job
from zoo.study.state import DONE

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
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", str(PATIENCE_S))
    monkeypatch.setenv("RAY_agent_register_timeout_ms", str(1000 * PATIENCE_S))
    monkeypatch.setenv("RAY_TMPDIR", tempfile.mkdtemp(prefix="zoo-ray-", dir="/tmp"))  # sockets have short paths
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
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


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore")  # of Ray
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
