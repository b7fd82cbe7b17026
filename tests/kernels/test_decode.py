"""Attention to a cache: the references against those of whole rows, and the kernels against the references."""

import pytest
import torch

from zoo.kernels import (
    cached_attention,
    cached_choose_blocks,
    cached_selection_attention,
    choose_blocks,
    compression_attention,
    full_attention,
    selection_attention,
    window_attention,
)

SEQ_LEN, H, K, D, V, R = 45, 4, 2, 6, 5, 4


@pytest.fixture
def row(randn):
    """q, k, v, q_rope, k_rope of two rows."""
    return (
        randn(2, SEQ_LEN, H, D),
        *(randn(2, SEQ_LEN, K, n) for n in (D, V)),
        randn(2, SEQ_LEN, H, R),
        randn(2, SEQ_LEN, R),
    )


def test_intervals_are_those_of_full_window_and_compression(row, chunked, randn):
    q, k, v, q_rope, k_rope = row
    end_BT = torch.arange(1, SEQ_LEN + 1).expand(2, -1)
    ropes = {"q_rope": q_rope, "k_rope_BNR": k_rope}
    o, _ = cached_attention(q, k, v, torch.zeros_like(end_BT), end_BT, **ropes)
    torch.testing.assert_close(o, full_attention(q, k, v, q_rope=q_rope, k_rope=k_rope))
    o, _ = cached_attention(q, k, v, (end_BT - 7).clamp(min=0), end_BT, **ropes)
    torch.testing.assert_close(o, window_attention(q, k, v, window=7, q_rope=q_rope, k_rope=k_rope))
    k, v, k_rope = (x[:, :12].contiguous() for x in (k, v, k_rope))  # 12 slots of stride 4
    end_BT = (end_BT - 6 + 4) // 4
    o, lse = cached_attention(q, k, v, torch.zeros_like(end_BT), end_BT, q_rope=q_rope, k_rope_BNR=k_rope)
    whole = compression_attention(q, k, v, block=6, stride=4, q_rope=q_rope, k_rope_BNR=k_rope)
    torch.testing.assert_close((o, lse), whole)
    assert (lse[:, 0] == -torch.inf).all()
    assert (o[:, 0] == 0).all()


@pytest.mark.parametrize("query_group", [1, 2, 4])
def test_choice_and_selection_are_those_of_whole_rows(row, chunked, query_group):
    q, k, v, q_rope, k_rope = row
    pooled, pooled_rope = k[:, :23], k_rope[:, :23]  # stride 2
    grid = {"compression_block": 4, "compression_stride": 2, "selection_block": 8, "n_init": 1, "n_local": 2}
    ropes = {"q_rope": q_rope, "k_rope_BNR": pooled_rope}
    lse = compression_attention(q, pooled, v[:, :23], block=4, stride=2, **ropes)[1]
    whole = choose_blocks(q, pooled, lse, n_selected=4, query_group=query_group, **grid, **ropes)
    whole_BTKS = whole.repeat_interleave(query_group, 1)[:, :SEQ_LEN]
    previous = torch.full((2, K, 4), -1, dtype=torch.int32)
    for lo, hi in ((0, 1), (1, 7), (7, 8), (8, 37), (37, SEQ_LEN)):
        at = torch.arange(lo, hi).expand(2, -1)
        part = {"q_rope": q_rope[:, lo:hi], "k_rope_BNR": pooled_rope}
        chosen = cached_choose_blocks(
            q[:, lo:hi], pooled, lse[:, lo:hi], at, previous, query_group=query_group, **grid, **part
        )
        assert torch.equal(chosen, whole_BTKS[:, lo:hi])
        previous = chosen[:, -1].contiguous()
        o = cached_selection_attention(
            q[:, lo:hi], k, v, chosen, at, selection_block=8, q_rope=q_rope[:, lo:hi], k_rope_BNR=k_rope
        )
        expected = selection_attention(
            q, k, v, whole, selection_block=8, query_group=query_group, q_rope=q_rope, k_rope=k_rope
        )
        torch.testing.assert_close(o, expected[:, lo:hi])


def test_groups_may_share_a_head_of_the_cache(randn):
    """Latents: four groups choose, two heads are kept."""
    q, k = randn(1, 3, 8, D), randn(1, 12, 2, D)
    at = torch.tensor([[21, 22, 23]])
    wide = k.repeat_interleave(2, 2)
    lse = cached_attention(q, k, k, torch.zeros_like(at), torch.tensor([[10, 11, 11]]))[1]
    grid = {"compression_block": 2, "compression_stride": 2, "selection_block": 4, "n_init": 0, "n_local": 1}
    previous = torch.full((1, 4, 3), -1, dtype=torch.int32)
    chosen = cached_choose_blocks(q, k, lse, at, previous, **grid)
    assert torch.equal(chosen, cached_choose_blocks(q, wide, lse, at, previous, **grid))
    assert not torch.equal(chosen[:, :, 0], chosen[:, :, 1])
    tokens = randn(1, 24, 2, D)
    o = cached_selection_attention(q, tokens, tokens, chosen, at, selection_block=4)
    expanded = tokens.repeat_interleave(2, 2)
    torch.testing.assert_close(o, cached_selection_attention(q, expanded, expanded, chosen, at, selection_block=4))


def test_what_does_not_agree_is_refused(randn):
    q, k, at = randn(2, 3, 4, D), randn(2, 8, 2, D), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"end_BT must be integers \[2, 3\]; found torch.float64 \[2, 3\]"):
        cached_attention(q, k, k, at, at.double())
    with pytest.raises(ValueError, match=r"chosen_BTKS must be int32 \[2, 3, K, S\]; found torch.int64 \[2, 3, 2, 4\]"):
        cached_selection_attention(q, k, k, torch.zeros(2, 3, 2, 4).long(), at, selection_block=4)
    with pytest.raises(ValueError, match="found H=4, K=3, J=2"):
        cached_selection_attention(q, k, k, torch.zeros(2, 3, 3, 4).int(), at, selection_block=4)
    grid = {"compression_block": 2, "compression_stride": 2, "selection_block": 4}
    with pytest.raises(ValueError, match=r"previous_BKS must be int32 \[2, K, S\]"):
        cached_choose_blocks(q, k, at.double()[..., None].expand(2, 3, 4), at, at, **grid)
