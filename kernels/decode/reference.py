"""Attention to a cache in plain torch: queries at given positions, keys in slots, in chunks of queries."""

import torch

from zoo.kernels.attend import attend, by_key_head, in_chunks, join_rotary, sinks_by_key_head, wide


def cached_attention(q_BTHD, k_BNJD, v_BNJV, first_BT, end_BT, *, q_rope, k_rope, scale, sinks, softcap):
    """`zoo.kernels.cached_attention`: o_BTHV, and its log-sum-exp lse_BTH."""
    q, k = join_rotary(q_BTHD, k_BNJD, q_rope, k_rope)
    q_BJTgD, k_BJND, v_BJNV = by_key_head(q, k.shape[2]), k.transpose(1, 2), wide(v_BNJV).transpose(1, 2)
    slot_N = torch.arange(k.shape[1], device=q.device)
    options = {"sinks": sinks_by_key_head(sinks, k.shape[2], 1), "softcap": softcap}

    def chunk(lo: int, hi: int) -> tuple[torch.Tensor, torch.Tensor]:
        visible_BTN = (slot_N >= first_BT[:, lo:hi, None]) & (slot_N < end_BT[:, lo:hi, None])
        o, scores = attend(q_BJTgD[:, :, lo:hi], k_BJND, v_BJNV, visible_BTN.unsqueeze(1), scale, **options)
        empty = ~visible_BTN.any(-1)[:, None, :, None] & (sinks is None)
        return o, scores.logsumexp(-1).masked_fill(empty, float("-inf"))

    batch, seq_len, n_heads, _ = q_BTHD.shape
    o_BJTgV, lse_BJTg = in_chunks(chunk, seq_len, batch * n_heads * k.shape[1], dim=2)
    return o_BJTgV.transpose(1, 2).flatten(2, 3).to(q_BTHD.dtype), lse_BJTg.transpose(1, 2).flatten(2, 3)


def cached_selection_attention(
    q_BTHD, k_BNJD, v_BNJV, chosen_BTKS, position_BT, *, selection_block, q_rope, k_rope, scale
):
    """`zoo.kernels.cached_selection_attention`: o_BTHV of queries that each have a choice, chosen_BTKS."""
    q, k = join_rotary(q_BTHD, k_BNJD, q_rope, k_rope)
    batch, seq_len, n_groups, _ = chosen_BTKS.shape
    q_BKTgD = by_key_head(q, n_groups)
    row_B111 = torch.arange(batch, device=q.device).view(-1, 1, 1, 1)
    head_K11 = (torch.arange(n_groups, device=q.device) // (n_groups // k.shape[2])).view(-1, 1, 1)
    offset_b = torch.arange(selection_block, device=q.device)

    def chunk(lo: int, hi: int) -> torch.Tensor:
        chosen_BKTS = chosen_BTKS[:, lo:hi].transpose(1, 2).long()
        token_BKTn = (chosen_BKTS[..., None] * selection_block + offset_b).flatten(-2)
        visible = (chosen_BKTS >= 0).repeat_interleave(selection_block, -1)
        visible = visible & (token_BKTn <= position_BT[:, None, lo:hi, None]) & (token_BKTn < k.shape[1])
        token_BKTn = token_BKTn.clamp(0, k.shape[1] - 1)
        k_BKTnD, v_BKTnV = (x[row_B111, token_BKTn, head_K11] for x in (k, wide(v_BNJV)))
        q_chunk = q_BKTgD[:, :, lo:hi, None]
        return attend(q_chunk, k_BKTnD, v_BKTnV, visible.unsqueeze(-2), scale)[0].squeeze(3)

    keys = batch * n_groups * chosen_BTKS.shape[3] * selection_block
    o_BKTgV = in_chunks(chunk, seq_len, keys * max(k.shape[3], q.shape[2] // n_groups), dim=2)
    return o_BKTgV.transpose(1, 2).flatten(2, 3).to(q_BTHD.dtype)
