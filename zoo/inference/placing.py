"""A run folder's model on the device and in the dtype it generates in."""

from pathlib import Path

import torch

from zoo.errors import ZooError, unknown
from zoo.inference.errors import GenerationError
from zoo.model import Decoder
from zoo.runs.weights import load

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_for_generation(run: str | Path, device: str = "auto", dtype: str = "auto") -> Decoder:
    """Load a run folder's model.

    device: as torch names it; auto is CUDA where there is a GPU, else the CPU.  dtype: bf16, fp16 or fp32; auto is bf16
    on CUDA (where training computed in it too), fp32 on a CPU.
    Raises LoadError for the folder, GenerationError for the device or dtype.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # AssertionError where torch is built without CUDA
        raise GenerationError(f"device: cannot use {device!r}: {str(error).splitlines()[0]}") from error
    if found.type == "meta":
        raise GenerationError("device: nothing can be computed on 'meta'")
    if dtype == "auto":
        dtype = "bf16" if found.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if dtype not in DTYPES:
        raise GenerationError(unknown("dtype", dtype, ("auto", *DTYPES)))
    try:
        return load(run, device="cpu" if found.type == "cpu" else device).to(DTYPES[dtype])
    except torch.OutOfMemoryError as error:
        raise ZooError(f"out of memory: the weights do not fit on {device}; --dtype bf16 halves them") from error
