"""Tile sizes for each kernel, tensor descriptors, and a launch that takes smaller tiles on smaller GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

import torch
from triton.runtime.errors import OutOfResources

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # triton 3.3
    TensorDescriptor = None

Tile = dict[str, int]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_INTERPRETED_TILES = [dict(BM=16, BN=32, HELD=1)]  # small, so that tests with few tokens have several tiles
_first_that_fits: dict[tuple, int] = {}


@cache
def fwd_tiles(dtype: torch.dtype, width: int, long_rows: bool) -> list[Tile]:
    if dtype == torch.float32:
        return _tiles((64, 32, 4, 2, 0), (32, 32, 4, 1, 0), (16, 16, 4, 1, 0))
    if width <= 128:
        best = (64, 64, 4, 3, 1) if long_rows or width > 96 else (64, 64, 4, 2, 0)
        return _tiles(best, (64, 64, 4, 2, 0), (64, 32, 4, 2, 0), (32, 32, 4, 1, 0))
    return _tiles((128, 64, 8, 2, 0), (64, 32, 4, 2, 0), (32, 32, 4, 1, 0), (16, 16, 4, 1, 0))


@cache
def dq_tiles(dtype: torch.dtype, width: int) -> list[Tile]:
    if dtype == torch.float32:
        return _tiles((32, 32, 4, 1, 0), (16, 16, 4, 1, 0))
    if width <= 96:
        return _tiles((64, 64, 4, 2, 0), (64, 32, 4, 2, 0), (32, 32, 4, 1, 0))
    if width <= 128:
        return _tiles((64, 64, 4, 3, 3), (64, 64, 4, 2, 0), (64, 32, 4, 2, 0), (32, 32, 4, 1, 0))
    return _tiles((64, 64, 8, 2, 0), (64, 32, 4, 1, 0), (32, 16, 4, 1, 0), (16, 16, 4, 1, 0))


@cache
def dkv_tiles(dtype: torch.dtype, width: int) -> list[Tile]:
    if dtype == torch.float32:
        return _tiles((32, 32, 4, 1, 0), (16, 16, 4, 1, 0))
    if width <= 96:
        return _tiles((64, 64, 4, 2, 3), (32, 64, 4, 2, 0), (32, 32, 4, 1, 0))
    if width <= 128:
        return _tiles((64, 64, 4, 2, 0), (32, 64, 4, 2, 0), (32, 32, 4, 1, 0))
    return _tiles((32, 64, 8, 2, 0), (32, 64, 4, 1, 0), (16, 32, 4, 1, 0), (16, 16, 4, 1, 0))


def _tiles(*tiles: tuple[int, int, int, int, int]) -> list[Tile]:
    """(queries, keys, warps, pipeline stages, held), best first; each needs less shared memory than the one before.

    held: which of the tensors that a program holds are kept in registers (bit 1 q or k, bit 2 do or v).
    """
    if INTERPRETED:
        return _INTERPRETED_TILES
    return [dict(BM=BM, BN=BN, num_warps=warps, num_stages=n, HELD=held) for BM, BN, warps, n, held in tiles]


def launch(
    kernel, grid: Callable, arguments: Callable, constants: dict, tiles: list[Tile], device: torch.device
) -> None:
    """Run `kernel` with the first tile that fits this GPU, and remember which that was.

    grid and arguments are made from the tile: descriptors and the number of programs depend on it.
    """
    key = (kernel, device, constants.get("DP"), constants.get("RP"), constants.get("VP"), id(tiles))
    for i in range(_first_that_fits.get(key, 0), len(tiles)):
        try:
            if device.type != "cuda" or device.index == torch.cuda.current_device():
                kernel[grid(tiles[i])](*arguments(tiles[i]), **constants, **tiles[i])
            else:
                with torch.cuda.device(device):
                    kernel[grid(tiles[i])](*arguments(tiles[i]), **constants, **tiles[i])
            return
        except OutOfResources:
            if i + 1 == len(tiles):
                raise
            _first_that_fits[key] = i + 1


def can_describe(*tensors: torch.Tensor) -> bool:
    """Whether the copy engine of Hopper and later can read all of these: 16-byte aligned, no broadcast axes."""
    if tensors[0].element_size() != 2 or not (INTERPRETED or _has_copy_engine(tensors[0].device)):
        return False
    for x in tensors:
        if x.data_ptr() % 16:
            return False
        for stride in x.stride()[:-1]:
            if stride % 8 or stride <= 0:
                return False
    return True


def describe(x: torch.Tensor, rows: int, padded: int) -> TensorDescriptor:
    """A descriptor of [batch, rows, heads, width], or of [batch, rows, width] as one head; tiles are of one head."""
    if x.dim() == 3:
        x = x.unsqueeze(2)
    described = object.__new__(
        TensorDescriptor
    )  # its constructor repeats the checks of `can_describe`, at 10 us a tensor
    described.__dict__.update(
        base=x, shape=list(x.shape), strides=list(x.stride()), block_shape=[1, rows, 1, padded], padding="zero"
    )
    return described


@cache
def _has_copy_engine(device: torch.device) -> bool:
    has_engine = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return TensorDescriptor is not None and has_engine


@cache
def n_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
