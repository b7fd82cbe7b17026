"""Compile a small layer by the pass that launches nothing, for a GPU that is not there, and then by a step as always.

Prints as JSON: the kernels that the pass compiled, by its own count and as (name, thread); those that the step compiled
after it; launchers that were built; what an autotuned kernel raised, and the tiles that it then holds as measured.
test_compile_only.py runs it.
"""

import json
import os
import sys
import threading
from importlib import import_module
from pkgutil import walk_packages

import torch
import triton
from triton import knobs
from triton import language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import zoo
from zoo import kernels
from zoo.training.ahead import _layer_step
from zoo.training.compile_only import compile_only

THREADS = 3
compiled: list[tuple[str, str]] = []
launchers: list[str] = []


class Driver:
    """What Triton asks a driver for when it compiles."""

    def launcher_cls(self, src, metadata):
        launchers.append(src.name)

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@triton.autotune([triton.Config({"SIZE": size}) for size in (32, 64, 128)], key=["n"])
@triton.jit
def double(x, n, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(x + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)


def note(src, metadata, metadata_group, times, cache_hit) -> None:
    compiled.append((src.name, threading.current_thread().name))


def launch(self, *arguments, grid, warmup, **constants):
    """What takes the place of a launch on a GPU: Triton looks the kernel up and compiles it at once if need be."""
    return run(self, *arguments, grid=grid, warmup=True, **constants)


driver.set_active(Driver())
run, JITFunction.run = JITFunction.run, launch
knobs.compilation.listener = note
for module in walk_packages(kernels.__path__, "zoo.kernels."):  # all, before Triton is told to interpret
    if not module.name.endswith(".fla"):
        import_module(module.name)
os.environ["TRITON_INTERPRET"] = "1"  # from here on, for dispatch: it takes tensors of a CPU
step = _layer_step(zoo.load_recipe(sys.argv[1]), 1, "cpu")
with kernels.use_implementation("triton"), torch.autograd.set_multithreading_enabled(False):
    counted = compile_only(step, THREADS)
    by_pass = list(compiled)
    compiled.clear()
    step()
    by_step = list(compiled)
    try:
        compile_only(lambda: double[(1,)](torch.zeros(64), 64), THREADS)
    except RuntimeError as error:
        raised = str(error)
found = {"counted": counted, "by_pass": by_pass, "by_step": by_step, "launchers": launchers}
print(json.dumps(found | {"raised": raised, "tiles": len(double.cache)}))
