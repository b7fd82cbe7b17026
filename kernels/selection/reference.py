"""Attention over the tokens of chosen blocks, gathered for each query group."""

import torch
import torch.nn.functional as F

from zoo.kernels.attend import attend, by_key_head, in_chunks, join_rotary, wide
from zoo.kernels.documents import query_groups, starts


def selection_attention(
    q_BTHD, k_BTKD, v_BTKV, chosen_BGKS, *, q_rope, k_rope, selection_block, query_group, scale, documents
):
    """`zoo.kernels.selection_attention`: o_BTHV."""
    batch, seq_len, n_heads, _ = q_BTHD.shape
    chosen_BGKS = _used_places(chosen_BGKS, seq_len, selection_block)
    n_kv_heads, n_selected, device = k_BTKD.shape[2], chosen_BGKS.shape[3], q_BTHD.device
    q, k = join_rotary(q_BTHD, k_BTKD, q_rope, k_rope)
    start_BT = starts(documents, batch, seq_len, device)
    first_BG, group_BT = query_groups(documents, batch, seq_len, query_group, device)
    first_BG = first_BG.clamp(min=0).long()
    start_BG = start_BT.gather(1, first_BG)
    token_BGq = first_BG[..., None] + torch.arange(query_group, device=device)
    row_B11 = torch.arange(batch, device=device)[:, None, None]
    q_BKGqgD = by_key_head(q[row_B11, token_BGq.clamp(max=seq_len - 1)].flatten(1, 2), n_kv_heads).unflatten(
        2, token_BGq.shape[1:]
    )
    chosen_BKGS = chosen_BGKS.transpose(1, 2)
    # Blocks of a row lie on one grid unless documents shift them; whole blocks are gathered where they do.
    unit = selection_block if documents is None else 1
    k_rows, v_rows = _table(k, unit), _table(wide(v_BTKV), unit)
    head_BK11 = torch.arange(batch * n_kv_heads, device=device).view(batch, n_kv_heads, 1, 1)
    units_per_head = -(-seq_len // unit)
    unit_u = torch.arange(0, selection_block, unit, device=device)
    token_b = torch.arange(selection_block, device=device)

    def chunk(lo: int, hi: int) -> torch.Tensor:
        chosen, start = chosen_BKGS[:, :, lo:hi], start_BG[:, None, lo:hi, None]
        block_start = start + chosen.clamp(min=0) * selection_block
        rows = (block_start[..., None] + unit_u) // unit
        rows = (head_BK11[..., None] * units_per_head + rows.clamp(max=units_per_head - 1)).flatten()
        shape = (*chosen.shape[:3], n_selected * selection_block, -1)
        k_BKGnD, v_BKGnV = (x.index_select(0, rows).view(shape) for x in (k_rows, v_rows))
        key_BKGn = (block_start[..., None] + token_b).masked_fill((chosen < 0)[..., None], seq_len + query_group)
        visible = key_BKGn.flatten(3)[..., None, :] <= token_BGq[:, None, lo:hi, :, None]
        return attend(q_BKGqgD[:, :, lo:hi], k_BKGnD, v_BKGnV, visible, scale)[0]

    n_keys = n_selected * selection_block
    per_group = batch * n_keys * max(n_kv_heads * k.shape[-1], n_heads * query_group)
    o_BKGqgV = in_chunks(chunk, first_BG.shape[1], per_group, dim=2)
    o_BGqHV = o_BKGqgV.permute(0, 2, 3, 1, 4, 5).flatten(3, 4)
    place_BT = group_BT * query_group + (torch.arange(seq_len, device=device) - start_BT) % query_group
    return o_BGqHV.flatten(1, 2)[row_B11[..., 0], place_BT].to(q_BTHD.dtype)


def _used_places(chosen_BGKS: torch.Tensor, seq_len: int, selection_block: int) -> torch.Tensor:
    """chosen_BGKS, int64, with -1 for every number that is no block of the row, up to the last place that is used.

    On a CPU, that is: elsewhere, finding the last place would wait for the device.  A row of 256 tokens has 16 blocks
    of 16, and gathering 64 places takes three times as long.
    """
    n_blocks = -(-seq_len // selection_block)
    chosen_BGKS = chosen_BGKS.long().masked_fill(chosen_BGKS >= n_blocks, -1)
    if chosen_BGKS.shape[3] <= n_blocks or not _has_values(chosen_BGKS):
        return chosen_BGKS
    used = (chosen_BGKS >= 0).flatten(0, 2).any(0).tolist()
    return chosen_BGKS[..., : max((place + 1 for place, is_used in enumerate(used) if is_used), default=1)]


def _has_values(x: torch.Tensor) -> bool:
    """Whether the host can read x without waiting, and without breaking a graph that is being traced."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and type(x) is torch.Tensor


def _table(x_BTKD: torch.Tensor, unit: int) -> torch.Tensor:
    """[B * K * ceil(T / unit), unit * D]: each row `unit` tokens of one head."""
    x_BKTD = F.pad(x_BTKD.transpose(1, 2), (0, 0, 0, -x_BTKD.shape[1] % unit))
    return x_BKTD.reshape(-1, unit * x_BTKD.shape[-1])
