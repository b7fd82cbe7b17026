"""What must hold whatever the numbers: the future and the neighbours change nothing; chosen blocks are well-formed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import kernels
from zoo.kernels.choice.reference import block_importance, rank_blocks

H, K, D = 4, 2, 3


def nsa(x, *, documents=None, block=8, stride=4, selection_block=8, query_group=2, n_selected=4, window=5):
    """All patterns of one layer over the channels of x [B, T, C], summed by gates: [B, T, H, D]."""
    q, k, v = x[..., : H * D].unflatten(-1, (H, D)), *(x[..., : K * D * 2].unflatten(-1, (2, K, D)).unbind(2))
    grid = {"block": block, "stride": stride, "documents": documents}
    k_pooled, v_pooled = kernels.mean_pool(k, **grid), kernels.mean_pool(v, **grid)
    compressed, lse = kernels.compression_attention(q, k_pooled, v_pooled, **grid)
    blocks = {"selection_block": selection_block, "query_group": query_group, "documents": documents}
    chosen = kernels.choose_blocks(
        q, k_pooled, lse, compression_block=block, compression_stride=stride, n_selected=n_selected, **blocks
    )
    outputs = [
        compressed,
        kernels.selection_attention(q, k, v, chosen, **blocks),
        kernels.window_attention(q, k, v, window=window, documents=documents),
        kernels.full_attention(q, k, v, documents=documents),
    ]
    return kernels.gated_sum(outputs, q[..., :1].expand(-1, -1, -1, len(outputs)))


@pytest.mark.parametrize("t", [0, 1, 7, 8, 22, 39])
def test_the_future_changes_nothing(t, randn, chunked):
    x = randn(2, 40, H * D)
    changed = x.clone()
    changed[:, t] += 10 * randn(2, H * D)
    before, after = nsa(x), nsa(changed)
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.equal(before[:, t], after[:, t])


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_packed_documents_equal_documents_alone(data):
    """Also lengths of 1, any split, any grid; the order of sums differs, so equality is to rounding."""
    lengths = data.draw(st.lists(st.integers(1, 24), min_size=1, max_size=6))
    stride = data.draw(st.sampled_from([1, 2, 4]))
    grid = {"stride": stride, "block": stride * data.draw(st.integers(1, 3))}
    grid["query_group"] = data.draw(st.sampled_from([1, 2, 4]))
    grid["selection_block"] = 4 * data.draw(st.integers(1, 2))
    grid["n_selected"] = data.draw(st.integers(3, 6))
    x = torch.randn(1, sum(lengths), H * D, dtype=torch.float64, generator=torch.Generator().manual_seed(len(lengths)))
    documents = kernels.Documents.from_cu_seqlens(torch.tensor([0, *lengths]).cumsum(0), 1, sum(lengths))
    packed = nsa(x, documents=documents, **grid)
    alone = torch.cat([nsa(part, **grid) for part in x.split(lengths, dim=1)], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-9)


def test_one_document_given_equals_none(randn, pack):
    x = randn(2, 21, H * D)
    torch.testing.assert_close(nsa(x, documents=pack([[21], [21]])), nsa(x), rtol=1e-12, atol=1e-12)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_chosen_blocks_are_well_formed(data):
    n_blocks = data.draw(st.integers(1, 9))
    own = torch.tensor([data.draw(st.integers(0, n_blocks - 1))])
    n_init, n_local = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 3))
    n = data.draw(st.integers(max(1, n_init + n_local), 12))
    values = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=n_blocks, max_size=n_blocks))
    chosen = rank_blocks(torch.tensor([values]), own, n, n_init, n_local)[0].tolist()

    own = own.item()
    blocks = [m for m in chosen if m >= 0]
    assert len(chosen) == n
    assert chosen == sorted(set(blocks)) + [-1] * (n - len(blocks))
    assert len(blocks) == min(n, own + 1)
    assert set(blocks) <= set(range(own + 1))
    forced = {m for m in range(own + 1) if m < n_init or m > own - n_local}
    assert forced <= set(blocks)
    left_out = set(range(own + 1)) - set(blocks)
    for m in set(blocks) - forced:
        assert all((values[m], -m) > (values[other], -other) for other in left_out)


def test_importance_of_overlapping_blocks():
    """The worked example of NSA's eq. 9 with indices from 0: l=4, s=2, b=8; block 1 holds tokens 8..15, pieces 4..7."""
    p = torch.eye(12).view(1, 1, 12, 12)  # one query for each compression block, attending to it alone
    importance = block_importance(p, torch.zeros(1, 12, dtype=torch.int32), n_blocks=3, pieces=4, overlap=2)
    assert importance[0, 0, :, 1].tolist() == [0, 0, 0, 1, 2, 2, 2, 1, 0, 0, 0, 0]
    assert importance[0, 0, :, 0].tolist() == [2, 2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_importance_of_equal_blocks_is_the_attention(randn):
    p = randn(2, 3, 5, 7).exp()
    assert torch.equal(block_importance(p, torch.zeros(2, 5, dtype=torch.int32), 7, pieces=1, overlap=1), p)


def test_only_the_first_query_of_a_group_is_scored(randn):
    q, k, v = randn(1, 64, 4, 3), randn(1, 64, 2, 3), randn(1, 64, 2, 3)
    options = {"compression_block": 4, "compression_stride": 4, "selection_block": 4, "n_selected": 4, "query_group": 4}

    def choose(q):
        k_pooled, v_pooled = (kernels.mean_pool(x, block=4, stride=4) for x in (k, v))
        _, lse = kernels.compression_attention(q, k_pooled, v_pooled, block=4, stride=4)
        return kernels.choose_blocks(q, k_pooled, lse, **options)

    others, firsts = q.clone(), q.clone()
    others[:, torch.arange(64) % 4 != 0] = randn(1, 48, 4, 3)
    firsts[:, ::4] = randn(1, 16, 4, 3)
    assert torch.equal(choose(q), choose(others))
    assert not torch.equal(choose(q), choose(firsts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_scores_stay_finite(dtype, randn):
    x = (1e3 * randn(1, 33, H * D, dtype=torch.float32)).to(dtype)
    assert nsa(x).isfinite().all()


@pytest.mark.parametrize("seq_len", [1, 2, 5])
def test_rows_shorter_than_every_block(seq_len, randn):
    x = randn(2, seq_len, H * D).requires_grad_()
    o = nsa(x, block=32, stride=16, selection_block=64, query_group=4, window=512)
    o.sum().backward()
    assert o.isfinite().all()
    assert x.grad.isfinite().all()


def test_autocast_leaves_the_dtype_of_the_inputs(randn):
    x = randn(1, 20, H * D, dtype=torch.float32)
    plain = nsa(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nsa(x), plain)
