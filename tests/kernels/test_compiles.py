"""Every kernel compiles for GPUs old and new, and has a tile for their shared memory: without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
GPUS = {  # compute capability, bytes of shared memory that a program may have, whether tiles for an H200 are too large
    "RTX 4090": (89, 101_376, True),
    "H200": (90, 232_448, False),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("gpu", "sizes"),
    [("H200", "few"), *(pytest.param(gpu, "all", marks=pytest.mark.long) for gpu in GPUS)],
)
def test_every_kernel_compiles(gpu, sizes, tmp_path):
    capability, shared, small = GPUS[gpu]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [
        sys.executable,
        Path(__file__).with_name("compile_for.py"),
        str(capability),
        str(shared),
        "bfloat16",
        sizes,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    kernels = {line[0] for line in lines}
    assert {
        "_dkv_kernel",
        "_selection_bwd_dkdv_kernel",
        "_selection_bwd_dkdv_by_entry_kernel",
        "_rank_kernel",
        "_selection_fwd_by_key_kernel",
        "split_kernel",
        "_split_kernel",
        "_swiglu_bwd_kernel",
        "write_kernel",
    } <= kernels
    assert len(kernels) >= 19, kernels
    assert (sum(int(line[2]) for line in lines) > 0) == small
