"""Heads that lie 2^30 numbers apart, as those of a long row laid out by head: 32 bits do not hold their addresses.

The memory between them is asked for and never touched. An address that wraps around ends the process.
"""

import pytest
import torch

from zoo.kernels import (
    cached_attention,
    cached_choose_blocks,
    cached_selection_attention,
    choose_blocks,
    compression_attention,
    rms_norm,
    selection_attention,
    window_attention,
)

pytestmark = [pytest.mark.interp, pytest.mark.slow]
T, H, D, BLOCK = 48, 3, 16, 16
APART = 2**30
GRID = {"compression_block": BLOCK, "compression_stride": BLOCK, "selection_block": BLOCK}


@pytest.fixture
def laid_out_by_head(randn):
    """Three tensors [1, tokens, H, D] of float16 noise, heads far apart."""

    def make(tokens: int) -> list[torch.Tensor]:
        memory = torch.empty((H - 1) * APART + 3 * tokens * D, dtype=torch.float16)
        strides = tokens * D, D, APART, 1
        tensors = [memory.as_strided((1, tokens, H, D), strides, i * tokens * D) for i in range(3)]
        return [x.copy_(randn(1, tokens, H, D)) for x in tensors]

    return make


def check(function, tensors):
    """function(*all but the last, impl), and its gradients for the last, against the reference in float64."""
    found = results(function, tensors, "triton")
    expected = results(function, dense(tensors), "reference", torch.float64)
    for x, y in zip(found, expected, strict=True):
        assert (x - y).norm() <= 2e-3 * y.norm()


def results(function, tensors, impl, dtype=torch.float16):
    *inputs, do = [x.detach().to(dtype).requires_grad_() for x in tensors]
    o = function(*inputs, impl)
    return [o, *torch.autograd.grad(o, inputs, do.detach())]


def dense(tensors):
    return [x.contiguous() for x in tensors]


@pytest.mark.parametrize("name", ["window", "selection", "norm"])
def test_training(name, laid_out_by_head):
    chosen = (torch.arange(T) // BLOCK).int()[None, :, None, None].expand(1, T, H, 1)
    function = {
        "window": lambda q, k, impl: window_attention(q, k, k, window=20, impl=impl),
        "selection": lambda q, k, impl: selection_attention(q, k, k, chosen, selection_block=BLOCK, impl=impl),
        "norm": lambda x, weight, impl: rms_norm(x, weight[0, 0], eps=1e-6, impl=impl),
    }[name]
    check(function, laid_out_by_head(T))


@pytest.mark.parametrize("query_group", [1, 4])
def test_queries_that_share_keys(query_group, laid_out_by_head, randn):
    """The heads of a query are then rows of one tile; with four queries dk and dv are computed by entry."""
    q, _, do = laid_out_by_head(T)
    k = randn(1, T, 1, D).half()
    chosen = (torch.arange(T) // BLOCK).int()[None, ::query_group, None, None].contiguous()

    def select(q, k, impl):
        return selection_attention(q, k, k, chosen, selection_block=BLOCK, query_group=query_group, impl=impl)

    check(select, (q, k, do))


@pytest.mark.parametrize("query_group", [1, 4])
def test_keys_whose_tokens_lie_far_apart(query_group, randn):
    """Selection counts the tokens of a block in 32 bits."""
    n, apart = BLOCK + 1, 2**27 + 2**24
    memory = torch.empty(n * apart, dtype=torch.float16)
    k = memory.as_strided((1, n, 1, D), (n * apart, apart, D, 1)).copy_(randn(1, n, 1, D))
    q, do = randn(1, n, H, D).half(), randn(1, n, H, D).half()
    chosen = (torch.arange(n) // BLOCK).int()[None, ::query_group, None, None].contiguous()

    def select(q, k, impl):
        return selection_attention(q, k, k, chosen, selection_block=BLOCK, query_group=query_group, impl=impl)

    check(select, (q, k, do))


@pytest.mark.parametrize("n_kv_heads", [1, H])
def test_choices(n_kv_heads, laid_out_by_head, randn):
    (q, _, _), (k, _, _) = laid_out_by_head(T), laid_out_by_head(T // BLOCK)
    k, at = k[:, :, :n_kv_heads], torch.arange(T)[None]
    _, lse = compression_attention(*dense((q, k, k)), block=BLOCK, stride=BLOCK, impl="reference")
    latest = torch.zeros(1, n_kv_heads, 3, dtype=torch.int32)
    expected = choose_blocks(q, k, lse, n_selected=3, **GRID, impl="reference")
    assert torch.equal(choose_blocks(q, k, lse, n_selected=3, **GRID, impl="triton"), expected)
    assert torch.equal(cached_choose_blocks(q, k, lse, at, latest, **GRID, impl="triton"), expected)


def test_decoding(laid_out_by_head):
    q, k, v = laid_out_by_head(T)
    at = torch.arange(T)[None]
    chosen = (at // BLOCK).int()[..., None, None].expand(1, T, H, 1)
    for function in (
        lambda q, k, v, impl: cached_attention(q, k, v, at * 0, at + 1, impl=impl)[0],
        lambda q, k, v, impl: cached_selection_attention(q, k, v, chosen, at, selection_block=BLOCK, impl=impl),
    ):
        expected = function(*dense((q, k, v)), "reference")
        assert (function(q, k, v, "triton") - expected).norm() <= 2e-3 * expected.norm()
