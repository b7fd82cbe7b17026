"""Selection attention in Triton: from tensors to the kernels, and how it differentiates.

The kernels are in `triton_by_query.py` (forward, dq) and `triton_by_key.py` (dk, dv). `triton_by_entry.py` has dk and
dv for the shapes that `op_by_key.by_entry` names, and `triton_partial.py` has forward and dq by key block for those
that `by_key` names. An operator of torch.library may not return None, so an absent rotary gradient is an empty tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from triton.runtime.errors import OutOfResources

from zoo.kernels.documents import Documents
from zoo.kernels.layout import dense_rows
from zoo.kernels.registration import Differentiable, differentiable, gradients_instead, opaque
from zoo.kernels.selection import op_by_key, op_by_query, op_partial, reference

MIN_TOKENS = 4096  # of a batch, for `by_key`
FAR = 2**25  # numbers between two tokens; the kernels multiply this distance by up to 63 in 32 bits


def selection_attention(
    q,
    k,
    v,
    chosen,
    *,
    q_rope=None,
    k_rope=None,
    scale,
    documents: Documents | None = None,
    selection_block,
    query_group,
):
    """As `zoo.kernels.selection.selection_attention`."""
    first = start = None
    if documents is not None:
        first, start = documents.groups(query_group)[0].contiguous(), documents.start_BT.contiguous()
    sizes = [selection_block, query_group, 1 if documents is None else documents.max_documents]
    tensors = dense_rows(q), _near_rows(k), _near_rows(v), dense_rows(q_rope), _near_rows(k_rope)
    compiling = torch.compiler.is_compiling()
    arguments = *tensors, chosen.contiguous(), first, start, sizes, scale
    if not by_key(q, k, v, q_rope, selection_block, query_group, scale):
        return (_by_query.op if compiling else _by_query.eager)(*arguments)[0]
    # A compiled graph builds the indices again in backward: how large they are is no simple formula of the shapes,
    # which may be symbols there.
    keeps = not compiling and torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    return (_by_key.op if compiling else _by_key.eager)(*arguments, keeps)[0]


def _near_rows(x: torch.Tensor | None) -> torch.Tensor | None:
    """`dense_rows`, and tokens less than FAR apart; copied where they are not."""
    x = dense_rows(x)
    return x.contiguous() if x is not None and x.stride(1) >= FAR else x


def by_key(q, k, v, q_rope, block: int, query_group: int, scale: float) -> bool:
    """Whether forward and dq run by key block too: where a query group has few rows, and a block many keys.

    Time in kernels, forward and backward, 32K tokens, 1,024 keys a query, H200, by query -> by key, ms. Blocks of 64,
    heads 64 wide: 1 row 27 -> 3.7, 2 rows 14 -> 3.1, 4 rows 7.6 -> 2.7, 8 rows 8.4 -> 5.3, 16 rows 2.6 -> 3.4; heads
    128 wide: 4 rows 16 -> 6.3, 8 rows 18 -> 12, 16 rows 20 -> 24. Blocks of 32, 4 rows 8.7 -> 5.0; blocks of 16 and
    512 keys 4.6 -> 4.7. Below MIN_TOKENS the host is slower than the kernels, and by key has more launches.
    """
    if q.shape[0] * q.shape[1] < MIN_TOKENS:
        return False
    rows = query_group * (q.shape[2] // k.shape[2])
    widest = max(x.shape[-1] for x in (q, v, q_rope) if x is not None)
    return q.element_size() == 2 and widest <= 128 and rows <= 8 and block >= 32 and scale > 0


def _forward_fake(q, k, v, q_rope, k_rope, chosen, first, start, sizes, scale):
    return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(op_by_query.statistics_shape(q, k), dtype=torch.float32)


def _forward_by_key_fake(q, k, v, q_rope, k_rope, chosen, first, start, sizes, scale, keeps):
    assert not keeps, "a compiled graph keeps no index"
    results = _forward_fake(q, k, v, q_rope, k_rope, chosen, first, start, sizes, scale)
    return *results, q.new_empty(0, dtype=torch.int32)


def _backward_by_query(
    do: torch.Tensor, o: torch.Tensor, lse: torch.Tensor,
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_rope: torch.Tensor | None, k_rope: torch.Tensor | None,
    chosen: torch.Tensor, first: torch.Tensor | None, start: torch.Tensor | None, sizes: list[int], scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """dq by query group, dk and dv by key block."""
    inputs, do = (q, k, v, q_rope, k_rope, chosen, first, start), dense_rows(do)
    block, query_group, max_documents = sizes
    dq, dq_rope, delta = op_by_query.backward(*inputs, o, lse, do, block, query_group, scale)
    size = op_by_query.constants(q, k, v, q_rope, chosen, block, query_group, first is not None)
    dk, dv, dk_rope = op_by_key.backward(*inputs, lse, delta, do, max_documents, size, scale)
    return (dq, dk, dv, q.new_empty(0), q.new_empty(0)) if q_rope is None else (dq, dk, dv, dq_rope, dk_rope)


def _backward_by_key(
    do: torch.Tensor, o: torch.Tensor, lse: torch.Tensor,
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_rope: torch.Tensor | None, k_rope: torch.Tensor | None,
    chosen: torch.Tensor, first: torch.Tensor | None, start: torch.Tensor | None, sizes: list[int], scale: float,
    kept: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    inputs = q, k, v, q_rope, k_rope, chosen, first, start
    dq, dq_rope, dk, dv, dk_rope = op_partial.backward(*inputs, o, lse, dense_rows(do), sizes, scale, kept)
    return (dq, dk, dv, q.new_empty(0), q.new_empty(0)) if q_rope is None else (dq, dk, dv, dq_rope, dk_rope)


def _backward_fake(do, o, lse, q, k, v, q_rope, k_rope, *_):
    return tuple(q.new_empty(0 if x is None else x.shape) for x in (q, k, v, q_rope, k_rope))


def _setup_context(ctx, inputs, output) -> None:
    """Of both forms; the one by key has one more input, `keeps`, and one more output, `kept`."""
    tensors, (ctx.sizes, ctx.scale, *ctx.rest) = inputs[:8], inputs[8:]
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*output[:2], *tensors, *output[2:])
    ctx.set_materialize_grads(False)


def _gradient(ctx, do, *_, compiling: bool, eager: Callable, op: Callable):
    saved = ctx.saved_tensors
    (o, lse), tensors, kept = saved[:2], saved[2:10], saved[10:]
    if do is None:
        return (None,) * (10 + len(ctx.rest))
    backward = op if compiling else eager
    try:
        dq, dk, dv, dq_rope, dk_rope = backward(do, o, lse, *tensors, ctx.sizes, ctx.scale, *kept)
    except OutOfResources as error:
        return gradients_instead(ctx, error, _reference, (*tensors, ctx.sizes, ctx.scale, *ctx.rest), do)
    if tensors[3] is None:
        dq_rope = dk_rope = None
    return dq, dk, dv, dq_rope, dk_rope, *(None,) * (5 + len(ctx.rest))


def _reference(q, k, v, q_rope, k_rope, chosen, first, start, sizes, scale, *_) -> torch.Tensor:
    """What the kernels compute."""
    block, query_group, max_documents = sizes
    options = {"selection_block": block, "query_group": query_group, "scale": scale}
    options["documents"] = None if start is None else Documents(start, max_documents)
    return reference.selection_attention(q, k, v, chosen, q_rope=q_rope, k_rope=k_rope, **options)


def _register(name: str, forward: Callable, fake: Callable, backward: Callable) -> Differentiable:
    op = opaque(f"{name}_backward", backward, _backward_fake)
    gradient = partial(_gradient, eager=backward, op=op)
    return differentiable(name, forward, fake, _setup_context, gradient)


_by_query = _register("selection_attention", op_by_query.forward, _forward_fake, _backward_by_query)
_by_key = _register("selection_attention_by_key", op_partial.forward, _forward_by_key_fake, _backward_by_key)
