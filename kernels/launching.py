"""How a Triton kernel is started: smaller tiles on smaller GPUs, and little Python a launch.

Triton finds the compiled kernel anew at each launch, from the types, values and alignments of some forty arguments:
about 40 us, when a kernel of attention takes 20 to 300 us at 8K tokens. `launch` remembers what it found by those same
properties, and starts it in about 12 us.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

import torch
from triton.runtime.errors import OutOfResources

Tile = dict[str, int]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MAX_COMPILED = 4096  # entries kept: one for each kernel and set of shapes
_first_that_fits: dict[tuple, int] = {}
_compiled: dict[tuple, tuple] = {}


def launch(
    kernel, grid: Callable[[Tile], tuple], arguments: tuple, constants: dict, tiles: list[Tile], device: torch.device
) -> None:
    """Run kernel[grid(tile)](*arguments, **constants, **tile) on `device`, with the first of `tiles` that fits it.

    arguments: tensors, numbers or None, in the order of the kernel's parameters; constants follow them.
    tiles: constants and launch options, each list kept alive by its maker; each needs less shared memory than the one
    before.  Raises triton's OutOfResources if none fits.
    """
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch(kernel, grid, arguments, constants, tiles, device)
    key = (id(kernel), device.index, *constants.values(), *tiles[0].values())
    for i in range(_first_that_fits.get(key, 0), len(tiles)):
        try:
            return _start(kernel, grid(tiles[i]), arguments, constants, tiles[i], device)
        except OutOfResources:
            if i + 1 == len(tiles):
                raise
            _first_that_fits[key] = i + 1


def _start(kernel, grid: tuple, arguments: tuple, constants: dict, tile: Tile, device: torch.device) -> None:
    if INTERPRETED or device.type != "cuda":
        kernel[grid](*arguments, **constants, **tile)
        return
    # What Triton compiles for: dtypes, pointers aligned to 16 bytes, and integers, of which it looks at 1s and at
    # multiples of 16; all of an integer is in the key. A float is passed at run time.
    key = (
        id(kernel),
        device.index,
        *[x if x.__class__ is int else _kind(x) for x in arguments],
        *constants.values(),
        *tile.values(),
    )
    known = _compiled.get(key)
    if known is not None:
        compiled, constexprs = known
        compiled[(*grid, 1, 1)[:3]](*arguments, *constexprs)
        return
    compiled = kernel[grid](*arguments, **constants, **tile)
    if len(_compiled) >= MAX_COMPILED:
        _compiled.clear()
    values = {**constants, **tile}
    _compiled[key] = compiled, tuple(values[name] for name in kernel.arg_names[len(arguments) :])


def _kind(x: torch.Tensor | float | None) -> object:
    if isinstance(x, torch.Tensor):
        return x.dtype, x.data_ptr() % 16 == 0
    return float if x.__class__ is float else x


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Triton's own is made for kernels too, and takes 4 us."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n; 0 for 0."""
    return 1 << (n - 1).bit_length() if n > 0 else 0


@cache
def n_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 elsewhere."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
