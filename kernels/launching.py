"""How a Triton kernel is started: smaller tiles on smaller GPUs, and little Python a launch.

At each launch Triton looks the compiled kernel up by the types, values and alignments of about forty arguments. That
takes about 40 us, while an attention kernel takes 20 to 300 us at 8K tokens. `launch` remembers what was found by the
same properties, and gives numbers to Triton's launcher in C. Pointers are numbers too; otherwise the launcher would ask
each tensor for its pointer and the driver whether it is valid.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import copy
from functools import cache

import torch
import triton
from triton.runtime import driver
from triton.runtime.errors import OutOfResources

try:
    from triton.knobs import runtime as _hooks
except ImportError:  # Triton 3.3
    from triton.compiler import CompiledKernel as _hooks

Tile = dict[str, int]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MAX_COMPILED = 4096  # entries kept: one for each kernel and set of shapes
_KNOWN = triton.__version__.startswith(("3.3.", "3.4.", "3.5.", "3.6."))  # its launchers
_first_that_fits: dict[tuple, int] = {}
_n_tensors: dict[int, int] = {}
_compiled: dict[tuple, tuple] = {}


def launch(
    kernel, grid: Callable[[Tile], tuple], arguments: tuple, constants: dict, tiles: list[Tile], device: torch.device
) -> None:
    """Run kernel[grid(tile)](*arguments, **constants, **tile) on `device`, with the first of `tiles` that fits it.

    arguments: tensors, or None in their place, and then numbers, in the order of the kernel's parameters; constants
    follow them.
    tiles: constants and launch options, each list kept alive by its maker; each needs less shared memory than the one
    before.  Raises triton's OutOfResources if none fits.
    """
    index = device.index
    if INTERPRETED or index is None:  # no GPU
        _find(kernel, grid, arguments, constants, tiles, device)
        return
    if index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch(kernel, grid, arguments, constants, tiles, device)
    # What Triton compiles for: dtypes, pointers aligned to 16 bytes, and integers, of which it looks at 1s and at
    # multiples of 16; all of a number is in the key.
    n = _n_tensors.get(id(kernel)) or _count_tensors(kernel, arguments)
    tensors, numbers = arguments[:n], arguments[n:]
    pointers = [0 if x is None else x.data_ptr() for x in tensors]
    key = (
        id(kernel),
        index,
        *[None if x is None else x.dtype for x in tensors],
        *[pointer & 15 for pointer in pointers],
        *numbers,
        *constants.values(),
        *tiles[0].values(),
    )
    known = _compiled.get(key)
    if known is not None:
        compiled, start, options, constexprs, tile = known
        programs = (*grid(tile), 1, 1)[:3]
        if start is None or _is_watched():
            compiled[programs](*arguments, *constexprs)
        else:
            stream = driver.active.get_current_stream(index)
            start(*programs, stream, compiled.function, *options, *pointers, *numbers, *constexprs)
        return
    compiled, constexprs, tile = _find(kernel, grid, arguments, constants, tiles, device)
    if compiled is None:  # nothing was launched: zoo.training.compile_only
        return
    if len(_compiled) >= MAX_COMPILED:
        _compiled.clear()
    _compiled[key] = compiled, *_direct_start(compiled), constexprs, tile


def _find(kernel, grid: Callable, arguments: tuple, constants: dict, tiles: list[Tile], device: torch.device) -> tuple:
    """Run the kernel as Triton does. Returns what it compiled, the constants that follow the arguments, the tile."""
    key = (id(kernel), device.index, *constants.values(), *tiles[0].values())
    for i in range(_first_that_fits.get(key, 0), len(tiles)):
        try:
            compiled = kernel[grid(tiles[i])](*arguments, **constants, **tiles[i])
        except OutOfResources:
            if i + 1 == len(tiles):
                raise
            _first_that_fits[key] = i + 1
            continue
        values = {**constants, **tiles[i]}
        names = () if compiled is None else kernel.arg_names[len(arguments) :]  # the interpreter compiles nothing
        return compiled, tuple(values[name] for name in names), tiles[i]
    raise ValueError("no tiles to launch with")


def _count_tensors(kernel, arguments: tuple) -> int:
    are_tensors = [x is None or isinstance(x, torch.Tensor) for x in arguments]
    n = _n_tensors[id(kernel)] = [*are_tensors, False].index(False)
    assert not any(isinstance(x, torch.Tensor) for x in arguments[n:]), "tensors go before numbers"
    return n


def _direct_start(compiled) -> tuple:
    """Triton's launcher in C, and what it is given between the kernel and its arguments; (None, ()) if not known.

    Triton's Python wrapper around it takes 2 us to find that a kernel needs no scratch memory.
    """
    launcher = compiled.run
    if not _KNOWN or launcher.global_scratch_size or getattr(launcher, "profile_scratch_size", 0):
        return None, ()
    given = []
    asked = copy(launcher)
    asked.launch = lambda *arguments: given.extend(arguments)
    asked(1, 1, 1, 0, 0, compiled.packed_metadata, None, None, None)  # no metadata for hooks, and no hooks
    return launcher.launch, tuple(given[5:])


def _is_watched() -> bool:
    """Whether a profiler is to be called at launches; before Triton 3.5 there is one hook, or None, and no list."""
    enter, leave = _hooks.launch_enter_hook, _hooks.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. Triton's own works in kernels too, and takes 4 us here."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not below n; 0 for 0."""
    return 1 << (n - 1).bit_length() if n > 0 else 0


@cache
def n_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 elsewhere."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
