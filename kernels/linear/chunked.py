"""Linear attention chunk by chunk in plain torch: products within a chunk, and one step of the state for each.

Within a chunk the delta rule is a triangular system: with A_ij = beta_i k_i^T diag(a_{j+1} ... a_i) k_j for j < i, what
token i adds is k_i u_i^T, (I + A) u = beta (v - K S) (arXiv 2412.06464, section 3.3). N chunks of L tokens.
"""

import torch
import torch.nn.functional as F

from zoo.kernels.documents import Documents
from zoo.kernels.layout import wide
from zoo.kernels.linear.reference import operands

CHUNK = 64  # with one decay for a head
CHANNEL_CHUNK = 16  # with one for each channel: decays between all pairs of tokens are L L D numbers


def linear_attention(
    q_BTKD: torch.Tensor,
    k_BTKD: torch.Tensor,
    v_BTHV: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    beta_BTH: torch.Tensor | None,
    scale: float,
    documents: Documents | None,
    state_BHDV: torch.Tensor | None,
    keep_state: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`zoo.kernels.linear_attention`."""
    q, k, v, decay = operands(q_BTKD, k_BTKD, v_BTHV, log_decay)
    (batch, seq_len, heads, width), n_values = q.shape, v.shape[-1]
    chunk = min(CHUNK if decay.shape[-1] == 1 else CHANNEL_CHUNK, seq_len)
    q, k, v, decay = (_chunks(x, chunk) for x in (q * scale, k, v, decay))
    seen, from_before, to_end = _masks(documents, seq_len, chunk, v.device)

    # Cumulative logs of the decays; a product of decays is the exponential of a difference, which is at most 0.
    total = decay.cumsum(3) if documents is None else _sums(decay, seen)
    since_start = _exp(total, from_before)
    until_end = _exp(total[:, :, :, -1:] - total, to_end)
    pairs = _exp(total[:, :, :, :, None] - total[:, :, :, None], seen[..., None])
    scores = _scores(q, k, pairs)
    added, read = v, None
    if beta_BTH is not None:
        beta = _chunks(wide(beta_BTH)[..., None], chunk)
        system = (beta * _scores(k, k, pairs)).tril(-1)
        known = beta * torch.cat((v, k * since_start), -1)
        solved = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
        added, read = solved.split([n_values, width], -1)

    state = v.new_zeros(batch, heads, width, n_values) if state_BHDV is None else state_BHDV.to(v.dtype)
    q_decayed, k_decayed, kept = q * since_start, (k * until_end).mT, since_start[:, :, :, -1, :, None]
    outputs = []
    for n in range(v.shape[2]):
        add = added[:, :, n] if read is None else added[:, :, n] - read[:, :, n] @ state
        outputs.append(q_decayed[:, :, n] @ state + scores[:, :, n] @ add)
        state = kept[:, :, n] * state + k_decayed[:, :, n] @ add
    o_BTHV = torch.cat(outputs, 2)[:, :, :seq_len].transpose(1, 2)
    return o_BTHV.to(v_BTHV.dtype), state if keep_state else None


def _chunks(x_BTH_: torch.Tensor, chunk: int) -> torch.Tensor:
    """[B, T, H, X] -> [B, H, N, L, X]; tokens beyond T are zeros, which leave a state as it is."""
    missing = -x_BTH_.shape[1] % chunk
    padded = F.pad(x_BTH_, (0, 0, 0, 0, 0, missing)) if missing else x_BTH_
    return padded.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)


def _masks(
    documents: Documents | None, seq_len: int, chunk: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Within the chunks of a row, which tokens are of one document.

    seen [B or 1, 1, N or 1, L, L]: query i may see key j.  from_before [B or 1, 1, N or 1, L, 1]: token i may see what
    came before the chunk.  to_end, likewise: token j may be seen after the chunk.
    """
    causal_LL = torch.ones(chunk, chunk, dtype=torch.bool, device=device).tril()
    if documents is None:
        all_L1 = torch.ones(1, 1, 1, chunk, 1, dtype=torch.bool, device=device)
        return causal_LL[None, None, None], all_L1, all_L1
    start_BT = documents.start_BT
    missing = -seq_len % chunk
    if missing:
        start_BT = torch.cat((start_BT, start_BT[:, -1:].expand(-1, missing)), 1)
    start_BNL = start_BT.unflatten(1, (-1, chunk))
    first_N1 = torch.arange(0, start_BT.shape[1], chunk, device=device)[:, None]
    seen = causal_LL & (start_BNL[..., None] == start_BNL[..., None, :])
    from_before, to_end = start_BNL < first_N1, start_BNL == start_BNL[..., -1:]
    return seen[:, None], from_before[:, None, ..., None], to_end[:, None, ..., None]


def _sums(decay: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Cumulative sums within each document. Differences of one sum over all documents would leave rounding errors in
    the gradients of other documents."""
    return torch.where(seen[..., None], decay[:, :, :, None], 0.0).sum(4)


def _exp(logs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """exp, 0 where it is not wanted: masked before, because there it may overflow."""
    return logs.masked_fill(~wanted, -torch.inf).exp()


def _scores(x: torch.Tensor, k: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """x_i^T diag(decay from j to i) k_j: [B, H, N, L, L].  pairs: those decays, [B, H, N, L, L, D or 1]."""
    if pairs.shape[-1] == 1:
        return x @ k.mT * pairs.squeeze(-1)
    return torch.einsum("...id,...ijd,...jd->...ij", x, pairs, k)
