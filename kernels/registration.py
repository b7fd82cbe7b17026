"""Kernels as differentiable functions: opaque ops for torch.compile, plain autograd functions in eager mode.

`torch.library` ops keep a compiled graph whole but cost a call some 0.1 ms of Python, which is more than the kernels
take at a few thousand tokens. So eager calls go through `torch.autograd.Function`, around the same Python functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from traceback import clear_frames
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

# The operation that is being computed, if another implementation may replace it after a failure; set by `dispatch`.
serving: str | None = None


def opaque(name: str, function: Callable, fake: Callable) -> Callable:
    """`function` as the op zoo::name, which the compiler does not look into; fake allocates what it returns."""
    op = torch.library.custom_op(f"zoo::{name}", function, mutates_args=())
    op.register_fake(fake)
    return op


def gradients_instead(ctx, error: Exception, reference: Callable, inputs: tuple, grad_output: torch.Tensor) -> tuple:
    """Gradients of reference(*inputs), one tensor, where a backward kernel asks for more than this GPU has.

    From the next forward pass on the operation takes another implementation; a warning says so.
    Raises `error` if it is any other, if the implementation was asked for by name, and under torch.compile.
    """
    from zoo.kernels import dispatch  # which imports this module

    if getattr(ctx, "serving", None) is None:
        raise error
    dispatch.give_up(ctx.serving, "triton", error)
    clear_frames(error.__traceback__)  # which hold the memory of the pass that failed
    off = torch.autocast(grad_output.device.type, enabled=False)  # the dtype of the inputs decides, as in `dispatch`
    with off, torch.enable_grad():
        leaves = [x.detach().requires_grad_() if _has_gradient(x) else x for x in inputs]
        output = reference(*leaves)
        found = torch.autograd.grad(output, [x for x in leaves if _has_gradient(x)], grad_output)
    grads = iter(found)
    return tuple([next(grads) if _has_gradient(x) else None for x in inputs])


def _has_gradient(x: object) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


class Differentiable(NamedTuple):
    """One function in two forms. eager: for a call at once.  op: opaque, for a graph that torch.compile traces.

    Callers choose (`op if torch.compiler.is_compiling() else eager`): a function that does takes time at each call.
    """

    eager: Callable
    op: Callable


def differentiable(
    name: str, forward: Callable, fake: Callable, setup_context: Callable, backward: Callable
) -> Differentiable:
    """A function of flat arguments whose gradient is `backward(ctx, *output_grads, compiling=...)`.

    With `compiling`, backward must go through opaque ops only.
    """
    op: Any = opaque(name, forward, fake)
    op.register_autograd(partial(backward, compiling=True), setup_context=setup_context)

    gradient = partial(backward, compiling=False)
    once = once_differentiable(gradient)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = forward(*inputs)
            setup_context(ctx, inputs, output)
            ctx.serving = serving
            return output

        @staticmethod
        def backward(ctx, *output_grads):
            # Gradients of gradients are refused. Where nobody can ask for them, the guard is left out: it costs 2 us.
            return (once if torch.is_grad_enabled() else gradient)(ctx, *output_grads)

    return Differentiable(Eager.apply, op)
