"""Compile the Triton kernels of a step in several threads, by a pass that launches none of them.

Triton compiles a kernel at its first call, and the call waits. In Triton's AsyncCompileMode a first call hands the
kernel to a thread; as a warm-up it does not wait for it and launches nothing. So one forward and backward pass hands
over all kernels at once. They get the arguments of real launches, because Triton compiles for the alignment of pointers
and for integers that are 1 or multiples of 16. Compiled kernels are left in this process and in Triton's cache on disk.

What kernels would have written is missing. Memory that torch leaves as it was is filled with zeros, because torch
operations may use it as indices; results of the pass mean nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
UNWRITTEN = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided}


def can_compile_only() -> bool:
    """Whether this Triton has AsyncCompileMode, as 3.6 does; older versions lack it."""
    try:
        from triton.runtime._async_compile import AsyncCompileMode  # noqa: F401
    except ImportError:
        return False
    return True


def compile_only(step: Callable[[], object], threads: int) -> int:
    """Call step(), which calls Triton kernels, and compile these in so many threads; none is launched.

    To be called before any of them has run: zoo.kernels.launching launches what it has launched before.
    Returns how many kernels were compiled, or found in Triton's cache. Those that cannot be compiled are left out.
    Backward passes must run on the calling thread (torch.autograd.set_multithreading_enabled(False)).
    Raises what step() raises, for example because it reads back what a kernel writes, and RuntimeError at a kernel that
    Triton has to autotune; what was handed over before is compiled.
    """
    from triton.runtime._async_compile import AsyncCompileMode

    with (
        _Compilers(threads) as pool,
        AsyncCompileMode(pool, ignore_errors=True) as mode,
        _nothing_launched(),
        _Zeros(),
    ):
        step()
    return sum(kernel.kernel is not None for kernel in mode.future_kernels.values())


class _Zeros(TorchDispatchMode):
    """Memory that torch would leave as it was holds zeros.

    A TorchFunctionMode would not do, because autograd leaves it during a backward pass.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        return found.zero_() if func.overloadpacket in UNWRITTEN else found


class _Compilers(ThreadPoolExecutor):
    """Threads that compile a kernel and then the C function that launches it, which Triton builds at the first launch.

    These functions are a third of the compile time of a layer of ansa_340m or nsa_340m, because each is one run of a C
    compiler (0.2 s).
    """

    def submit(self, compile_kernel: Callable, /, *args, **kwargs) -> Future:
        return super().submit(_with_launcher, partial(compile_kernel, *args, **kwargs))


def _with_launcher(compile_kernel: Callable):
    from triton.runtime import driver

    kernel = compile_kernel()
    # A launcher that cannot be built is an error of the first launch. The file stays in Triton's cache.
    with contextlib.suppress(Exception):
        driver.active.launcher_cls(kernel.src, kernel.metadata)
    return kernel


@contextlib.contextmanager
def _nothing_launched() -> Iterator[None]:
    """Calls of Triton kernels compile and return None; kernels that measure several tiles raise RuntimeError."""
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    run, bench = JITFunction.run, Autotuner._bench

    def compiled(self, *args, grid, warmup, **kwargs) -> None:
        run(self, *args, grid=grid, warmup=True, **kwargs)

    def refused(self, *args, **kwargs):  # it would keep the times of launches that were none
        raise RuntimeError(f"{self.base_fn.__name__} measures its tiles, and nothing is launched here")

    JITFunction.run, Autotuner._bench = compiled, refused
    try:
        yield
    finally:
        JITFunction.run, Autotuner._bench = run, bench
