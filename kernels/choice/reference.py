"""The choice of selection blocks from the scores of compression attention, one for each query group and key head."""

import torch

from zoo.kernels.attend import by_key_head, in_chunks, join_rotary, wide
from zoo.kernels.compression.reference import visible_slots
from zoo.kernels.documents import query_groups, starts


@torch.no_grad()
def choose_blocks(
    q_BTHD, k_BNKD, lse_BTH, *, q_rope, k_rope, compression_block, compression_stride, selection_block, n_selected,
    n_init, n_local, query_group, scale, documents,
):  # fmt: skip
    """`zoo.kernels.choose_blocks`: chosen_BGKS int32, [B, G, K, S].  q_BTHD, k_BNKD, lse_BTH: any float dtype."""
    batch, seq_len, n_heads, _ = q_BTHD.shape
    n, n_kv_heads = k_BNKD.shape[1:3]
    n_blocks = -(-seq_len // selection_block)
    first_BG, _ = query_groups(documents, batch, seq_len, query_group, q_BTHD.device)
    token_BG = first_BG.clamp(min=0).long()  # only the first query of a group is scored
    start_BG = starts(documents, batch, seq_len, q_BTHD.device).gather(1, token_BG)
    row_B1 = torch.arange(batch, device=q_BTHD.device)[:, None]
    q, k = join_rotary(q_BTHD[row_B1, token_BG], k_BNKD, None if q_rope is None else q_rope[row_B1, token_BG], k_rope)
    q_BKGgD, k_BKND = by_key_head(q, n_kv_heads), k.transpose(1, 2)
    lse_BKGg = by_key_head(wide(lse_BTH)[row_B1, token_BG][..., None], n_kv_heads).squeeze(-1)

    def chunk(lo: int, hi: int) -> torch.Tensor:
        start, token = start_BG[:, lo:hi], token_BG[:, lo:hi]
        rows = (hi - lo, n_heads // n_kv_heads)
        scores = ((q_BKGgD[:, :, lo:hi] * scale).flatten(2, 3) @ k_BKND.mT).unflatten(2, rows)
        hidden = ~visible_slots(start, token, n, compression_block, compression_stride)[:, None, :, None]
        p_BKGN = (scores - lse_BKGg[:, :, lo:hi, :, None]).exp_().masked_fill_(hidden, 0.0).sum(3)
        importance = block_importance(
            p_BKGN, start // compression_stride, n_blocks, selection_block // compression_stride,
            compression_block // compression_stride,
        )  # fmt: skip
        own_block = (token - start) // selection_block
        chosen = rank_blocks(importance, own_block[:, None], n_selected, n_init, n_local)
        return chosen.masked_fill((first_BG[:, lo:hi] < 0)[:, None, :, None], -1)

    elements = batch * max(n_heads * n, n_kv_heads * n_blocks)
    chosen_BKGS = in_chunks(chunk, first_BG.shape[1], elements, dim=2)
    return chosen_BKGS.transpose(1, 2).contiguous()


def block_importance(p_BKGN, first_slot_BG, n_blocks: int, pieces: int, overlap: int) -> torch.Tensor:
    """p_slc_BKGM(m) = sum over a < pieces, c < overlap of p(pieces * m + a - c), terms out of range 0.

    pieces: b / s.  overlap: l / s.  first_slot_BG: the slot of block 0 of the query's document.  A NaN counts as 0.
    """
    n = p_BKGN.shape[-1]
    p_BKGN = p_BKGN.nan_to_num(0.0, posinf=torch.inf)
    p_BKGN = torch.nn.functional.pad(p_BKGN, (0, 1))  # one more slot, 0, for all that are out of range
    block_M = torch.arange(n_blocks, device=p_BKGN.device)
    total = p_BKGN.new_zeros(*p_BKGN.shape[:-1], n_blocks)
    for offset in range(1 - overlap, pieces):
        weight = sum(0 <= offset + c < pieces for c in range(overlap))  # stride-sized pieces shared with block m
        j_M = pieces * block_M + offset
        slot_BGM = first_slot_BG[..., None] + j_M
        slot_BGM = slot_BGM.masked_fill((j_M < 0) | (slot_BGM >= n), n)
        total += weight * p_BKGN.gather(-1, slot_BGM.unsqueeze(1).expand(-1, p_BKGN.shape[1], -1, -1))
    return total


def rank_blocks(importance, own_block, n_selected: int, n_init: int, n_local: int) -> torch.Tensor:
    """The blocks of the `n_selected` highest importances, forced ones first, int32, ascending, then -1.

    importance: [..., M].  own_block: [...], the block of the query; later blocks are no candidates.
    """
    n_blocks = importance.shape[-1]
    importance = importance.nan_to_num()  # infinity becomes a finite number, below that of forced blocks
    block_M = torch.arange(n_blocks, device=importance.device)
    own = own_block[..., None]
    importance = importance.masked_fill((block_M < n_init) | (block_M > own - n_local), float("inf"))
    importance = importance.masked_fill(block_M > own, float("-inf"))
    value, block = importance.sort(dim=-1, descending=True, stable=True)  # stable: ties go to the lower index
    value, block = value[..., :n_selected], block[..., :n_selected]
    chosen = block.masked_fill(value == float("-inf"), n_blocks).sort(-1).values
    chosen = torch.nn.functional.pad(chosen, (0, n_selected - chosen.shape[-1]), value=n_blocks)
    return chosen.masked_fill(chosen == n_blocks, -1).int()
