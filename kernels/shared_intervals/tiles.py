"""Tile sizes for each kernel, as measured on an H200 (docs/log.md), and smaller ones for smaller GPUs."""

from __future__ import annotations

from functools import cache

import torch

from zoo.kernels.launching import INTERPRETED, Tile

_INTERPRETED_TILES = [dict(BM=16, BN=32)]  # small, so that tests with few tokens have several tiles


@cache
def fwd_tiles(dtype: torch.dtype, width: int, window: bool, slots: bool) -> list[Tile]:
    """width: of keys, content and rotary part, or of values, as tiles hold them; window: a query sees few tiles;
    slots: keys are those of compressed blocks.

    Narrow heads have a limit on registers. With 128 registers four programs of a window share a processor, with the 168
    of dq three. Where a query sees many tiles, the forward is 4 to 5% faster with 152 registers than with the 168 that
    the compiler chooses, though three programs share a processor in both cases.
    """
    if dtype == torch.float32:
        return _tiles((64, 32, 4, 2), (32, 32, 4, 1), (16, 16, 4, 1))
    if width <= 96:
        return _tiles((64, 64, 4, 2, 128 if window else 152), (64, 32, 4, 2), (32, 32, 4, 1))
    if width <= 128:
        return _tiles((64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 1))
    if width <= 192:  # MLA's 128 + 64
        best = [(64, 32, 4, 3)] * (not slots)
        return _tiles(*best, (64, 32, 4, 2), (64, 32, 4, 1), (32, 32, 4, 1), (16, 16, 4, 1))
    return _tiles((128, 64, 8, 2), (64, 32, 4, 2), (32, 32, 4, 1), (16, 16, 4, 1))


@cache
def dq_tiles(dtype: torch.dtype, width: int, slots: bool) -> list[Tile]:
    """Tiles of the kernel that computes the gradient of queries.  width, slots: as for `fwd_tiles`."""
    if dtype == torch.float32:
        return _tiles((32, 32, 4, 1), (16, 16, 4, 1))
    if width <= 96:
        return _tiles((64, 64, 4, 2, 168), (64, 32, 4, 2), (32, 32, 4, 1))
    if width <= 128:
        return _tiles((64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 1))
    if width <= 192:
        best = [(64, 32, 4, 3)] * (not slots)
        return _tiles(*best, (64, 32, 4, 2), (64, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1))
    return _tiles((64, 64, 8, 2), (64, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1))


@cache
def dkv_tiles(dtype: torch.dtype, width: int, long: bool = False) -> list[Tile]:
    """long: a query sees thousands of keys, of one document."""
    if dtype == torch.float32:
        return _tiles((32, 32, 4, 1), (16, 16, 4, 1))
    if width <= 96:
        return _tiles((64, 64, 4, 3), (64, 64, 4, 2), (32, 64, 4, 2), (32, 32, 4, 1))
    if width <= 128:
        wide = [(64, 128, 8, 3)] * long
        return _tiles(*wide, (32, 64, 4, 3), (32, 64, 4, 2), (32, 32, 4, 1))
    if width <= 192:
        return _tiles((32, 128, 8, 3), (32, 64, 4, 2), (32, 64, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1))
    return _tiles((32, 64, 8, 2), (32, 64, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1))


def _tiles(*tiles: tuple[int, ...]) -> list[Tile]:
    """(queries, keys, warps, pipeline stages, and the most registers of a thread, if not what it asks for), best first;
    each needs less shared memory than the one before."""
    if INTERPRETED:
        return _INTERPRETED_TILES
    return [
        dict(BM=BM, BN=BN, num_warps=warps, num_stages=stages, **({"maxnreg": most[0]} if most else {}))
        for BM, BN, warps, stages, *most in tiles
    ]
