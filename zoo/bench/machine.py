"""What a benchmark of a whole command states of this machine, and the head of its table."""

import datetime
import platform
import resource
import sys

from zoo.processes import processor


def machine() -> dict[str, str]:
    """The device, and the versions that ran on it."""
    import torch

    on_gpu = torch.cuda.is_available()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if on_gpu:
        import triton

        versions["triton"] = triton.__version__
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    if not on_gpu:
        versions["processor"] = processor()
    return {"device": device, **versions, "date": datetime.date.today().isoformat()}


def peak_bytes() -> int:
    """Allocated on the GPU at the highest; on a CPU the process's resident set."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    scale = 1024 if sys.platform == "linux" else 1  # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def heading(report: dict) -> list[str]:
    """The lines above the table of a report: chip, versions, date and command."""
    found = report["machine"]
    where = ", ".join(f"{name} {found[name]}" for name in ("torch", "triton", "python") if found.get(name))
    devices = max((row.get("devices", 1) for row in report["rows"]), default=1)
    count = "One" if devices == 1 else f"{devices} x"
    return [f"{count} {found['device']}, {where}, {found['date']}.", "", f"    {report['command']}", ""]
