"""The GPUs of this machine as nvidia-smi shows them, and NVIDIA's multi-process service. No torch."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 60


@dataclass(frozen=True)
class Gpu:
    """A GPU.  id: what CUDA_VISIBLE_DEVICES names it."""

    id: str
    name: str
    total_bytes: int

    def used_bytes(self) -> int:
        """Bytes of its memory that are in use now; 0 where the driver does not say."""
        found = _query(["memory.used"], self.id)
        return found[0][0] * 2**20 if found and isinstance(found[0][0], int) else 0


def visible_gpus() -> list[Gpu]:
    """The GPUs that a training would use: those of CUDA_VISIBLE_DEVICES, else all; none without a driver."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = [part.strip() for part in asked.split(",") if part.strip()] if asked is not None else None
    if ids is None:
        ids = [str(row[0]) for row in _query(["index"])]
    found = []
    for id in ids:
        if rows := _query(["name", "memory.total"], id):
            name, total = rows[0]
            found.append(Gpu(id, str(name), int(total) * 2**20 if isinstance(total, int) else 0))
    return found


def _query(fields: list[str], id: str | None = None) -> list[list[str | int]]:
    """The answers of nvidia-smi, a row for each GPU; nothing where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        command += ["-i", id] if id is not None else []
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [[int(cell) if cell.isdecimal() else cell for cell in row] for row in rows]


class Mps:
    """NVIDIA's multi-process service, by which kernels of several processes run on a GPU at the same time.

    Started for the study, with folders of its own, and ended with it; a service that runs already is used as it is.
    Where it cannot be started, or CUDA does not work through it, `active` is False and processes take turns.
    """

    def __init__(self) -> None:
        self.active = False
        self._own: Path | None = None
        program = shutil.which("nvidia-cuda-mps-control")
        if program is None:
            return
        if "CUDA_MPS_PIPE_DIRECTORY" not in os.environ and not Path("/tmp/nvidia-mps/control").exists():
            self._own = Path(tempfile.mkdtemp(prefix="zoo-mps-"))  # short: sockets have paths of 108 characters
            if not self._control(program, ["-d"], None):
                self._own = None
                return
        self.active = self._works()
        if not self.active:
            self.close()

    def environment(self) -> dict[str, str]:
        """Variables of the processes that use the service."""
        if self._own is None:
            return {}
        return {"CUDA_MPS_PIPE_DIRECTORY": str(self._own), "CUDA_MPS_LOG_DIRECTORY": str(self._own)}

    def _control(self, program: str, arguments: list[str], line: str | None) -> bool:
        environment = {**os.environ, **self.environment()}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                [program, *arguments], input=line, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
            )
            return done.returncode == 0
        return False

    def _works(self) -> bool:
        code = "import torch; torch.zeros(8, device='cuda').sum().item()"
        environment = {**os.environ, **self.environment()}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, timeout=3 * TIMEOUT_S
            )
            return done.returncode == 0
        return False

    def close(self) -> None:
        """End the service if it was started here."""
        program = shutil.which("nvidia-cuda-mps-control")
        if self._own is not None and program is not None:
            self._control(program, [], "quit\n")
            shutil.rmtree(self._own, ignore_errors=True)
        self._own, self.active = None, False
