"""What the processes of a training exchange through their CPUs."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from zoo.errors import ZooError
from zoo.training import processes
from zoo.training.processes import Hosts


def of_one(rank: int, store: str, results) -> None:
    """What process `rank` of two finds."""
    from zoo.training.graphs import StepTrainer

    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    hosts = Hosts(30)
    found = [hosts.sums(rank + 1, 2**52), hosts.any(rank == 1), hosts.any(False)]
    seconds = timedelta(seconds=1.5 + rank)
    found.append(StepTrainer._accumulate_time_across_ranks(SimpleNamespace(hosts=hosts), 4 + rank, 100, seconds))
    results.put(found)
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path, monkeypatch):
    spawn = torch.multiprocessing.get_context("spawn")
    results = spawn.Queue()
    both = []
    for rank in (0, 1):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        both.append(spawn.Process(target=of_one, args=(rank, str(tmp_path / "store"), results)))
        both[-1].start()
    found = [results.get(timeout=60) for _ in both]
    for process in both:
        process.join(30)
        assert process.exitcode == 0
    # The time is that of the first process.
    assert found == [[[3, 2**53], True, False, (9, 200, timedelta(seconds=1.5))]] * 2


def test_one_process_is_alone():
    hosts = Hosts(1)
    assert hosts.sums(3, 0.5) == [3, 0.5]
    assert hosts.any(True)
    assert not hosts.any(False)


@pytest.mark.parametrize(
    ("raised", "asked", "said"),
    [
        ("[enforce fail at gloo/transport/tcp/device.cc:84] Unable to find address for: nope0", "nope0", "=nope0;"),
        ("Unable to resolve hostname to a (local) address", "", "host name"),
    ],
)
def test_an_interface_without_an_address_is_named(raised, asked, said, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", asked)
    with pytest.raises(ZooError, match="set GLOO_SOCKET_IFNAME to the network interface") as caught, naming():
        raise RuntimeError(raised)
    assert said in str(caught.value)
    with pytest.raises(RuntimeError, match="Connection closed by peer"), naming():
        raise RuntimeError("gloo: Connection closed by peer")


def naming():
    return processes._naming_the_interface()
