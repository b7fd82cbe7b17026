"""The processes of one training: started by `zoo train --devices N`, joined where each begins."""

import os
import sys
from datetime import timedelta

from zoo.errors import Problem, RecipeError
from zoo.processes import cores

NAMES_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def launch(devices: int, arguments: list[str]) -> None:
    """Become torchrun, which starts `python -m zoo` with these arguments once for each device of this machine.

    This process is replaced, so that signals reach torchrun itself.  Each process gets its share of the cores as
    OMP_NUM_THREADS, unless that is set.  Raises RecipeError if a launcher has started this process already, or if the
    machine has fewer GPUs.
    """
    if any(name in os.environ for name in NAMES_OF_LAUNCHERS):
        raise RecipeError([Problem("a launcher has started this process already; leave it out", key="--devices")])
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < devices:
        raise RecipeError([Problem(f"this machine has only {gpus}; found {devices}", key="--devices")])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // devices)))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices), "-m", "zoo"]
    os.execv(sys.executable, [sys.executable, *command, *arguments])


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
