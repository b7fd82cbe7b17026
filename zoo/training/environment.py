"""environment.json: what a run ran on, so that its numbers can be understood later."""

import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import zoo
from zoo.files import present, read_json, write_sealed_json
from zoo.processes import processor

_PACKAGES = ("torch", "triton", "mosaicml", "mosaicml-streaming", "numpy", "safetensors", "liger-kernel")


def record_environment(path: Path, *, seed: int, precision: str, world_size: int, from_batch: int) -> None:
    """Write environment.json; what earlier sessions of the same run wrote is kept under `earlier`."""
    earlier = []
    if present(path):
        last = read_json(path)
        before = last.pop("earlier", [])
        earlier = [*(before if isinstance(before, list) else [before]), last]
    environment = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "from_batch": from_batch,
        "command": sys.argv,
        "seed": seed,
        "git": _git(),
        "versions": {"attention-zoo": zoo.__version__, "python": platform.python_version()} | _versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "processes": world_size,
        "precision": precision,
        "threads": torch.get_num_threads(),  # sums are split over threads: another number gives other last bits
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
    write_sealed_json(path, environment | {"earlier": earlier})


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git() -> dict | None:
    """Commit of the checkout that the zoo runs from, and whether it has changes; None for an installed package."""
    folder = Path(zoo.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not some other repository that holds a virtual environment
        return {"commit": git("rev-parse", "HEAD"), "changes": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
