"""The processes of one training: the group that each joins where it begins, and what they tell each other."""

from datetime import timedelta
from typing import Any


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
        dist.initialize_dist("cpu", timeout=timeout_s)
        return
    device = torch.device("cuda", dist.get_local_rank())
    torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl", timeout=timedelta(seconds=timeout_s), device_id=device)


class Hosts:
    """Numbers that the processes of a training exchange through their CPUs (gloo); all call it in the same order.

    NCCL would begin when the GPU has done what was launched before, and Python would wait for it with nothing launched.
    """

    def __init__(self, timeout_s: float):
        """timeout_s: how long a process waits for the others in an exchange."""
        import torch
        from composer.utils import dist

        self.group: Any = None
        if dist.get_world_size() > 1:
            self.group = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def sums(self, *numbers: float) -> list[float]:
        """The sum of each number over all processes, in float64."""
        if self.group is None:
            return list(numbers)
        import torch

        sums = torch.tensor(numbers, dtype=torch.float64)
        torch.distributed.all_reduce(sums, group=self.group)
        return sums.tolist()

    def any(self, told: bool) -> bool:
        """Whether one of the processes was told."""
        return self.sums(told)[0] > 0
