"""The choice of blocks for queries at given positions in plain torch, in chunks of queries."""

import torch

from zoo.kernels.attend import by_key_head, in_chunks, join_rotary, wide
from zoo.kernels.choice.reference import block_importance, rank_blocks


def cached_choose_blocks(
    q_BTHD, k_BNJD, lse_BTH, position_BT, previous_BKS, *, compression_block, compression_stride, selection_block,
    n_init, n_local, query_group, q_rope, k_rope, scale,
):  # fmt: skip
    """Every query makes a choice as if it were the first of its group; those of the first are then handed around."""
    seq_len, (_, n_groups, n_selected) = q_BTHD.shape[1], previous_BKS.shape
    position_BT = position_BT[:, :1] + torch.arange(seq_len, device=q_BTHD.device)
    q, k = join_rotary(q_BTHD, k_BNJD, q_rope, k_rope)
    k_BKND = k.transpose(1, 2).repeat_interleave(n_groups // k.shape[2], 1)
    q_BKTgD, lse_BKTg = by_key_head(q, n_groups), by_key_head(wide(lse_BTH)[..., None], n_groups).squeeze(-1)
    last_N = torch.arange(k.shape[1], device=q.device) * compression_stride + compression_block - 1
    n_blocks = -(-k.shape[1] * compression_stride // selection_block)
    pieces, overlap = selection_block // compression_stride, compression_block // compression_stride

    def chunk(lo: int, hi: int) -> torch.Tensor:
        position = position_BT[:, lo:hi]
        scores = (q_BKTgD[:, :, lo:hi] * scale) @ k_BKND[:, :, None].mT
        hidden_BTN = last_N > position[..., None]
        p_BKTgN = (scores - lse_BKTg[:, :, lo:hi, :, None]).exp_().masked_fill_(hidden_BTN[:, None, :, None], 0.0)
        importance = block_importance(p_BKTgN.sum(3), torch.zeros_like(position), n_blocks, pieces, overlap)
        return rank_blocks(importance, (position // selection_block)[:, None], n_selected, n_init, n_local)

    elements = q.shape[0] * max(q.shape[2] * k.shape[1], n_groups * n_blocks)
    own_BTKS = in_chunks(chunk, seq_len, elements, dim=2).transpose(1, 2)
    first_BT = torch.arange(seq_len, device=q.device) - position_BT % query_group
    index_BTKS = first_BT.clamp(min=0)[..., None, None].expand_as(own_BTKS)
    return torch.where((first_BT >= 0)[..., None, None], own_BTKS.gather(1, index_BTKS), previous_BKS[:, None])
