"""The processes of one training: the group that each joins where it begins, and what they tell each other."""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from zoo.errors import ZooError

_NO_ADDRESS = re.compile("unable to (find address|resolve hostname)|getaddrinfo", re.I)


def join_processes(on_gpu: bool, timeout_s: float) -> None:
    """Make the default process group, unless it exists.

    On GPUs it is told which device is this process's: a barrier would otherwise have to guess, and NCCL warn of it.
    timeout_s: how long a process waits for the others in an exchange.
    """
    import torch
    from composer.utils import dist

    if torch.distributed.is_initialized():
        return
    if not on_gpu:
        with _naming_the_interface():
            dist.initialize_dist("cpu", timeout=timeout_s)
        return
    device = torch.device("cuda", dist.get_local_rank())
    torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl", timeout=timedelta(seconds=timeout_s), device_id=device)


class Hosts:
    """Numbers that the processes of a training exchange through their CPUs (gloo); all call it in the same order.

    NCCL would begin when the GPU has done what was launched before, and Python would wait for it with nothing launched.
    Raises ZooError if gloo finds no network interface.
    """

    def __init__(self, timeout_s: float):
        """timeout_s: how long a process waits for the others in an exchange."""
        import torch
        from composer.utils import dist

        self.group: Any = None
        if dist.get_world_size() > 1:
            with _naming_the_interface():
                self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def sums(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes, in float64."""
        if self.group is None:
            return list(numbers)
        import torch

        sums = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(sums, group=self.group)
        return sums.tolist()

    def any(self, here: bool) -> bool:
        """Whether it is true in one of the processes."""
        return self.sums(here)[0] > 0


@contextlib.contextmanager
def _naming_the_interface() -> Iterator[None]:
    """Around the start of gloo: an address that it cannot find is an error of the settings, not of another process."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if _NO_ADDRESS.search(str(error)) is None:
            raise
        asked = os.environ.get("GLOO_SOCKET_IFNAME")
        why = f"of GLOO_SOCKET_IFNAME={asked}" if asked else f"that the host name {socket.gethostname()!r} stands for"
        raise ZooError(
            f"gloo, through which the processes of a training exchange numbers, finds no address {why}; set "
            "GLOO_SOCKET_IFNAME to the network interface that connects the machines (ip -br address lists them)"
        ) from error
