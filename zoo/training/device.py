"""What the device decides: precision, micro-batch, peak speed."""

import torch

from zoo.errors import Problem, RecipeError
from zoo.processes import cores
from zoo.training.config import TrainConfig

# Dense bf16 peak of one device in FLOP/s, from NVIDIA's data sheets (without sparsity). The first that fits counts.
PEAK_BF16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
}

MOST_WORKERS = 4  # with auto: 256 rows of 256 tokens in 5 ms on an H200's machine (docs/benchmarks/training.md)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak FLOP/s of a device in this precision; None if it is not in the table, and no MFU is reported then."""
    if precision != "bf16":
        return None
    return next((peak for name, peak in PEAK_BF16.items() if name in device_name), None)


def resolve_precision(train: TrainConfig, on_gpu: bool) -> str:
    """fp32 or bf16.  Raises RecipeError for bf16 on a CPU, where the engine has no mixed precision."""
    if train.precision == "auto":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if train.precision == "bf16" and not on_gpu:
        raise _problem("precision", "bf16 needs a CUDA GPU, and none is here; use auto or fp32")
    return train.precision


def resolve_micro_batch(train: TrainConfig, per_device: int, on_gpu: bool, sharded: bool) -> int | str:
    """Rows of a micro-batch on one device, or "auto", which the engine can search for on a GPU without sharding.

    Raises RecipeError for auto with fsdp2 on GPUs: a wrong guess would end in an out-of-memory error hours later.
    """
    if train.micro_batch != "auto":
        return min(train.micro_batch, per_device)
    if not on_gpu:
        return per_device
    if sharded:
        raise _problem("micro_batch", f"auto does not work with fsdp2; state a number up to {per_device}")
    return "auto"


def why_no_graph(train: TrainConfig, on_gpu: bool, world_size: int) -> str | None:
    """Why a training cannot use CUDA graphs, as far as that is known before the first batch; None if it can."""
    if train.cuda_graph == "off":
        return "the recipe says off"
    if not on_gpu:
        return "there is no CUDA GPU"
    if world_size > 1:
        return f"{world_size} processes exchange gradients during the backward pass"
    if train.activation_checkpointing:
        return "activation_checkpointing restores the random state during the backward pass"
    return None


def resolve_workers(train: TrainConfig, split: str, on_gpu: bool, world_size: int) -> int:
    """Processes that read the rows of a split: with auto several for training on one GPU, which a small model needs."""
    if isinstance(train.workers, int):
        return train.workers
    if split != "train" or not on_gpu or world_size > 1:
        return 1
    return max(1, min(MOST_WORKERS, cores() - 2))


def rows_per_device(batch_size: int, world_size: int) -> int:
    """Rows of a batch on each device.  Raises RecipeError if they do not come out even."""
    if batch_size % world_size:
        message = f"must be a multiple of the number of processes ({world_size}); found {batch_size} rows"
        raise _problem("batch_size", message)
    return batch_size // world_size


def _problem(key: str, message: str) -> RecipeError:
    return RecipeError([Problem(message, key=f"train.{key}")])
