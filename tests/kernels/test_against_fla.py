"""NSA beside the naive one of flash-linear-attention 0.6, which computes in float32: compression, choice, selection."""

import warnings

import pytest
import torch

from zoo.kernels import choose_blocks, compression_attention, mean_pool, selection_attention

B, K, D, BLOCK, SELECTED = 2, 2, 16, 16, 8


@pytest.fixture(scope="module")
def fla():
    pytest.importorskip("fla")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it could be quicker with
        from fla.ops.nsa import naive
    return naive


@pytest.fixture
def inputs(randn):
    """inputs(T, H) is q, k, v of T tokens and H query heads."""
    return lambda T, H: [randn(B, T, heads, D).requires_grad_() for heads in (H, K, K)]


def compressed(q, k, v):
    pooled_k, pooled_v = mean_pool([k, v], block=BLOCK, stride=BLOCK)
    return pooled_k, pooled_v, *compression_attention(q, pooled_k, pooled_v, block=BLOCK, stride=BLOCK)


def choice(q, pooled_k, lse):
    grid = {"compression_block": BLOCK, "compression_stride": BLOCK, "selection_block": BLOCK}
    return choose_blocks(q, pooled_k, lse, n_selected=SELECTED, **grid)


def same(found, expected, leaves):
    """Outputs and gradients, as far as float32 can tell."""
    torch.testing.assert_close(found, expected.to(found.dtype), atol=2e-6, rtol=1e-5)
    noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(3), dtype=found.dtype)
    pairs = zip(
        torch.autograd.grad(found, leaves, noise, retain_graph=True),
        torch.autograd.grad(expected, leaves, noise.to(expected.dtype), retain_graph=True),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("T", "H"), [(333, 32), (15, 8), (200, 2)])
def test_compression(fla, inputs, T, H):
    q, k, v = inputs(T, H)
    pooled_k, pooled_v, o, lse = compressed(q, k, v)
    theirs, their_lse = fla.naive_nsa_compression(q, pooled_k, pooled_v, BLOCK, D**-0.5)
    same(o, theirs, (q, k, v))
    seen = torch.arange(T) >= BLOCK - 1  # they have 0, and not -inf, where nothing is seen
    torch.testing.assert_close(lse[:, seen].float(), their_lse[:, seen].float(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("T", "H"), [(333, 32), (15, 8), (200, 2)])
def test_choice(fla, inputs, T, H):
    """The first block, the query's own and the one before are taken in any case, by them as by default by us."""
    q, k, v = inputs(T, H)
    pooled_k, _, _, lse = compressed(q, k, v)
    ours = choice(q, pooled_k, lse.detach())
    theirs = fla.naive_nsa_topk(q, pooled_k, SELECTED, BLOCK, D**-0.5)
    in_order = theirs.masked_fill(theirs < 0, T).sort(-1).values
    assert torch.equal(ours.long(), in_order.masked_fill(in_order == T, -1))


@pytest.mark.slow
@pytest.mark.parametrize(("T", "H"), [(333, 32), (15, 8), (200, 2)])
def test_selection(fla, inputs, T, H):
    q, k, v = inputs(T, H)
    pooled_k, _, _, lse = compressed(q, k, v)
    chosen = choice(q, pooled_k, lse.detach())
    theirs = fla.naive_nsa_selection(q, k, v, chosen.long(), BLOCK)
    same(selection_attention(q, k, v, chosen, selection_block=BLOCK), theirs, (q, k, v))
