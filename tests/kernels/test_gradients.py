"""Gradients of every differentiable operation, by finite differences in float64; and none where nothing is seen."""

import pytest
import torch

from zoo import kernels

T, H, K, D, R, V = 7, 4, 2, 3, 2, 2


@pytest.fixture(params=[None, [[3, 4]]], ids=["whole rows", "documents"])
def documents(request, pack):
    return request.param and pack(request.param)


@pytest.fixture
def leaves(randn):
    shapes = [(1, T, H, D), (1, T, K, D), (1, T, K, V), (1, T, H, R), (1, T, R)]
    return [randn(*shape).requires_grad_() for shape in shapes]


@pytest.mark.thinned(2)
def test_full_and_window(leaves, documents, chunked):
    for impl in ["reference"] if documents else ["reference", "sdpa"]:

        def full(q, k, v, q_rope, k_rope, impl=impl):
            return kernels.full_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, documents=documents, impl=impl)

        assert torch.autograd.gradcheck(full, leaves)

    def window(q, k, v, q_rope, k_rope):
        return kernels.window_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, window=3, documents=documents)

    assert torch.autograd.gradcheck(window, leaves)


@pytest.mark.slow
@pytest.mark.thinned(2)
def test_pooling_and_compression(leaves, documents, chunked):
    grid = {"block": 3, "stride": 1, "documents": documents}

    def attend(q, k, v, q_rope, k_rope):
        k, v, k_rope = (kernels.mean_pool(x, **grid) for x in (k, v, k_rope))
        return kernels.compression_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, **grid)[0]

    assert torch.autograd.gradcheck(attend, leaves)
    assert torch.autograd.gradcheck(lambda x: kernels.gather_blocks(x, **grid), leaves[1])


@pytest.mark.slow
@pytest.mark.thinned(2)
def test_selection(leaves, documents, chunked):
    groups = kernels.n_groups(T, 2, documents)
    chosen = torch.tensor([[0, -1], [0, 1]], dtype=torch.int32).expand(1, groups, 2, 2)

    for impl in ["reference"] if documents else ["reference", "sdpa"]:

        def attend(q, k, v, q_rope, k_rope, impl=impl):
            options = {"selection_block": 2, "query_group": 2, "documents": documents, "impl": impl}
            return kernels.selection_attention(q, k, v, chosen, q_rope=q_rope, k_rope=k_rope, **options)

        assert torch.autograd.gradcheck(attend, leaves)


def test_gated_sum(randn):
    outputs = [randn(1, 3, 2, 2).requires_grad_() for _ in range(3)]
    logits = randn(1, 3, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: kernels.gated_sum(x[:3], x[3]), (*outputs, logits))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_queries_that_see_nothing(dtype, randn, chunked):
    """Every query before the first whole block, or with empty places only: zeros out, zeros back, nothing is NaN."""
    q, k, v = (randn(1, 6, n, 4, dtype=dtype).requires_grad_() for n in (2, 1, 1))
    pooled = [kernels.mean_pool(x, block=8, stride=8) for x in (k, v)]
    o, lse = kernels.compression_attention(q, *pooled, block=8, stride=8)
    assert not o.any()
    assert (lse == -torch.inf).all()
    chosen = torch.full((1, 6, 1, 2), -1, dtype=torch.int32)
    for impl in ("reference", "sdpa"):
        selected = kernels.selection_attention(q, k, v, chosen, selection_block=4, impl=impl)
        assert not selected.any()
        with torch.autograd.detect_anomaly(check_nan=True):
            (o.sum() + selected.sum()).backward(retain_graph=True)
        assert not any(x.grad.any() for x in (q, k, v))


def test_lse_carries_no_gradient(randn):
    q, k, v = (randn(1, 6, n, 4).requires_grad_() for n in (2, 1, 1))
    _, lse = kernels.compression_attention(q, k, v, block=1, stride=1)
    assert not lse.requires_grad


def test_chunks_change_nothing(leaves, monkeypatch):
    """Recomputing chunks in backward gives the gradients of one chunk."""
    results = []
    for elements in (10, 10**6):
        monkeypatch.setattr("zoo.kernels.attend.CHUNK_ELEMENTS", elements)
        q, k, v, q_rope, k_rope = leaves
        o = kernels.full_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, impl="reference")
        o = o + kernels.window_attention(q, k, v, q_rope=q_rope, k_rope=k_rope, window=2)
        results.append(torch.autograd.grad(o.square().sum(), leaves))
    for few, many in zip(*results, strict=True):
        torch.testing.assert_close(few, many)
