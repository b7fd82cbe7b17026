"""The process group of one training, which each of its processes joins where it begins."""

from datetime import timedelta


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
