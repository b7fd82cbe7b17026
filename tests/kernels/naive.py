"""The formulas of the attention patterns, once more: loops over tokens, heads and keys, for one document of one row.

Written from the definitions, sharing no code with zoo.kernels; slow on purpose. Tensors are float64: q [T, H, D],
k [T, K, D], v [T, K, V], rotary parts [T, H, R] and [T, R] or None.
"""

import math

import torch


def score(q, k, q_rope, k_rope, t, h, i, scale=None):
    """Query t of head h against key i of the head it shares."""
    g = h // (q.shape[1] // k.shape[1])
    dot, width = float(q[t, h] @ k[i, g]), q.shape[2]
    if q_rope is not None:
        dot, width = dot + float(q_rope[t, h] @ k_rope[i]), width + q_rope.shape[2]
    return dot / math.sqrt(width) if scale is None else dot * scale


def softmax(scores: list[float]) -> list[float]:
    top = max(scores, default=0.0)
    weights = [math.exp(x - top) for x in scores]
    return [w / sum(weights) for w in weights]


def attention(q, k, v, sees, q_rope=None, k_rope=None, scale=None, sinks=None, softcap=None):
    """o [T, H, V] where query t of head h sees the keys sees(t, group), and lse [T, H].

    softcap: of scores.  sinks: for each head the score of one more key, whose value is 0.
    """
    o = torch.zeros(*q.shape[:2], v.shape[2], dtype=torch.float64)
    lse = torch.full(q.shape[:2], -math.inf, dtype=torch.float64)
    for t in range(q.shape[0]):
        for h in range(q.shape[1]):
            g = h // (q.shape[1] // k.shape[1])
            keys = list(sees(t, g))
            scores = [score(q, k, q_rope, k_rope, t, h, i, scale) for i in keys]
            if softcap is not None:
                scores = [softcap * math.tanh(x / softcap) for x in scores]
            if sinks is not None:
                scores.append(float(sinks[h]))
            for p, i in zip(softmax(scores), keys, strict=False):
                o[t, h] += p * v[i, g]
            if scores:
                lse[t, h] = math.log(sum(math.exp(x) for x in scores))
    return o, lse


def full(t):
    return range(t + 1)


def window(t, w):
    return [i for i in range(t + 1) if t - i < w]


def pool(x, block, stride):
    """The mean of each whole block, in order: [n, ...]."""
    blocks = []
    j = 0
    while j * stride + block <= x.shape[0]:
        blocks.append(sum(x[j * stride + i] for i in range(block)) / block)
        j += 1
    return torch.stack(blocks) if blocks else x[:0]


def compressed(t, block, stride):
    """Compression blocks wholly in the past of t."""
    return [j for j in range(t + 1) if j * stride + block - 1 <= t]


def importance(p, m, block, stride, selection_block):
    """p: the attention to each compression block, one number each. Each counts by the pieces it shares with block m."""
    pieces_m = set(range(m * selection_block // stride, (m + 1) * selection_block // stride))
    return sum(p[j] * len(pieces_m & set(range(j, j + block // stride))) for j in range(len(p)))


def choose(q, k_pooled, block, stride, selection_block, n, n_init, n_local, query_group, q_rope, k_rope, scale=None):
    """chosen[group][kv head] = ascending list of blocks."""
    n_heads, n_kv = q.shape[1], k_pooled.shape[1]
    result = []
    for t in range(0, q.shape[0], query_group):
        result.append([])
        for g in range(n_kv):
            total = [0.0] * len(compressed(t, block, stride))
            for h in range(g * n_heads // n_kv, (g + 1) * n_heads // n_kv):
                p = softmax([score(q, k_pooled, q_rope, k_rope, t, h, j, scale) for j in range(len(total))])
                total = [a + b for a, b in zip(total, p, strict=True)]
            own = t // selection_block
            forced = {m for m in range(own + 1) if m < n_init or own - m < n_local}
            rest = [m for m in range(own + 1) if m not in forced]
            rest.sort(key=lambda m: (-importance(total, m, block, stride, selection_block), m))
            result[-1].append(sorted(forced | set(rest[: n - len(forced)])))
    return result


def selected(t, chosen, selection_block):
    """Tokens of the chosen blocks that are not in the future of t."""
    return [i for m in chosen for i in range(m * selection_block, (m + 1) * selection_block) if i <= t]
