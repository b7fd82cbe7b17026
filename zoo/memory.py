"""How much memory is free, and whether an error says that it ran out. Imports no torch before a GPU is asked about."""

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import address_space

if TYPE_CHECKING:
    import torch

RAN_OUT = re.compile(
    r"out of memory|OutOfMemory|not enough memory|can(?:no|')?t allocate memory|bad_?alloc|ALLOC_FAILED",
    re.I,
)
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
# Of control groups, versions 2 and 1: the limit, what is in use, and the file and name of what the kernel can drop.
LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def free_host_bytes() -> int | None:
    """Bytes that processes started now can have: the system's available memory, or what a container's limit leaves.

    None where the system does not say.
    """
    found = []
    for limit, used, stat, dropped in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # ValueError: version 2 says "max" where there is no limit
            left = int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text())
            found.append(left + _named(CGROUP / stat, dropped))
    with contextlib.suppress(OSError, ValueError):
        found.append(1024 * _named(MEMINFO, "MemAvailable:"))
    return max(0, min(found)) if found else None


def free_bytes(device: "torch.device") -> int | None:
    """Bytes that this process can still allocate on a device; None where the system does not say.

    On a GPU, memory that PyTorch has reserved and does not use counts as free.  On a CPU, a limit on the address space
    of the process counts as well.
    """
    if device.type == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    limit, taken = address_space.limit(), address_space.taken()
    found = [free_host_bytes(), None if limit is None or taken is None else max(0, limit - taken)]
    return min((each for each in found if each is not None), default=None)


def ran_out(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that memory ran out.

    On a CPU torch raises RuntimeError, and only its text says so.
    """
    while error is not None:
        if isinstance(error, MemoryError) or RAN_OUT.search(f"{type(error).__name__}: {error}"):
            return True
        error = error.__cause__
    return False


def _named(path: Path, name: str) -> int:
    """The number after a name in a file of names and numbers.  Raises ValueError if it is not there."""
    for line in path.read_text().splitlines():
        found, _, value = line.partition(" ")
        if found == name:
            return int(value.split()[0])
    raise ValueError(f"{path}: no {name}")
