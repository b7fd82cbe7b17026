"""What a block costs, counted from its config alone: parameters, forward FLOPs, cache elements. No torch.

FLOPs are those of matrix products, 2 m n k each, in one forward pass over one row of `seq_len` tokens (one document).
Attention counts exactly the (query, key) pairs that are visible, 2 (d_qk + d_v) a pair and head; nothing is counted for
norms, rotations, softmax, gates' sigmoids, mean pooling (additions) and the sorting of importances. An implementation
that multiplies masked pairs as well does more work than this.
"""

from dataclasses import dataclass
from math import gcd, prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.blocks.config import AttentionConfig, Pattern


@dataclass(frozen=True)
class Cost:
    """The cost of one layer on one row.

    parameters, flops: by part.  cache_nominal_elements: keys and values (or latent and rotary key) of every token;
    cache_held_elements: what the cache tensors occupy, with pooled entries, and only the tokens still needed.
    cache_choice_bytes: of the latest choice of blocks, which is held beside them whatever the dtype.
    """

    parameters: dict[str, int]
    flops: dict[str, float]
    cache_nominal_elements: int
    cache_held_elements: int
    cache_choice_bytes: int = 0

    def cache_held_bytes(self, bytes_per_element: int) -> int:
        """What the cache tensors of one row occupy, its elements being so wide."""
        return bytes_per_element * self.cache_held_elements + self.cache_choice_bytes

    @property
    def total_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def total_flops(self) -> float:
        return sum(self.flops.values())


def attention_cost(config: "AttentionConfig", d_model: int, seq_len: int) -> Cost:
    """The cost of a grid point whose defaults are worked out (`grid_point`)."""
    if seq_len < 1:
        raise ValueError(f"cost: seq_len must be at least 1; found {seq_len}")
    nominal, held = _cache_elements(config, seq_len)
    return Cost(_parameters(config, d_model), _flops(config, d_model, seq_len), nominal, held, _choice_bytes(config))


def _parameters(config: "AttentionConfig", d_model: int) -> dict[str, int]:
    projection, compression = config.projection, config.pattern("compression")
    counts = _projection_weights(config, d_model)
    if projection.kind == "gqa":
        norms = projection.head_dim * (1 + config.n_kv_sets) if projection.qk_norm else 0
    else:
        norms = projection.kv_rank + (projection.q_rank or 0)
    offsets = 0
    if compression and compression.pooling == "mlp":
        offsets = sum(compression.compression_block * shape[-1] for shape in projection.entries().values())
    counts |= {"norm": norms, "pooling": counts["pooling"] + offsets}
    return {name: count for name, count in counts.items() if count}


def _projection_weights(config: "AttentionConfig", d_model: int) -> dict[str, int]:
    """Weights of the linear maps by part; each multiplies every token (those of `pooling`, every pooled entry) once."""
    projection, compression = config.projection, config.pattern("compression")
    heads, kv_heads = projection.n_heads, projection.n_kv_heads
    entry = sum(prod(shape) for shape in projection.entries().values())
    if projection.kind == "gqa":
        query, up = d_model * heads * projection.qk_dim, 0
    else:
        rank = projection.q_rank
        query = (rank or d_model) * heads * projection.qk_dim + (d_model * rank if rank else 0)
        up = projection.kv_rank // projection.n_latent_heads * kv_heads * (projection.head_dim + projection.v_head_dim)
    pooling = 0
    if compression and compression.pooling == "mlp":
        block = compression.compression_block
        pooling = sum((block + 1) * shape[-1] ** 2 for shape in projection.entries().values())
    gate = d_model * heads * len(config.patterns) if len(config.patterns) > 1 else 0
    return {
        "query": query,
        "key_value": d_model * entry * config.n_kv_sets,
        "key_value_up": up,
        "pooling": pooling,
        "gate": gate,
        "output": heads * projection.v_head_dim * d_model,
    }


def _flops(config: "AttentionConfig", d_model: int, seq_len: int) -> dict[str, float]:
    projection, weights = config.projection, _projection_weights(config, d_model)
    kinds = {pattern.kind for pattern in config.patterns}
    flops = {name: 2.0 * seq_len * weights[name] for name in ("query", "key_value", "gate", "output")}
    expanded = seq_len if kinds - {"compression"} else 0
    compression, selection = config.pattern("compression"), config.pattern("selection")
    per_pair = 2.0 * projection.n_heads * (projection.qk_dim + projection.v_head_dim)
    if compression:
        block, stride = compression.compression_block, compression.compression_stride
        slots = n_slots(seq_len, stride)
        expanded += slots
        if compression.pooling == "mlp":
            flops["pooling"] = (
                2.0 * slots * sum((block + 1) * prod(shape) * shape[-1] for shape in projection.entries().values())
            )
        flops["compression"] = per_pair * compression_pairs(seq_len, block, stride)
        if selection:
            scored = compression_pairs(seq_len, block, stride, selection.query_group)
            flops["choice"] = 2.0 * projection.n_heads * projection.qk_dim * scored
            flops["selection"] = per_pair * selection_pairs(seq_len, selection.selection_block, selection.n_selected)
    if "window" in kinds:
        flops["window"] = per_pair * window_pairs(seq_len, config.pattern("window").window)
    if "full" in kinds:
        flops["full"] = per_pair * window_pairs(seq_len, seq_len)
    flops["key_value_up"] = 2.0 * expanded * weights["key_value_up"]
    return {name: count for name, count in flops.items() if count}


def _cache_elements(config: "AttentionConfig", seq_len: int) -> tuple[int, int]:
    """(nominal, held) elements. Patterns that share keys share the tokens that any of them keeps.

    Compression keeps one pooled entry a stride, and, where it pools keys before rotation, those of its tokens.
    """
    shapes = config.projection.entries()
    entry = sum(prod(shape) for shape in shapes.values())
    pooled = 0
    if compression := config.pattern("compression"):
        pooled = entry * n_slots(seq_len, compression.compression_stride)
        if not compression.pool_rotated:
            pooled += prod(shapes[config.projection.rotated_entry]) * kept_tokens(compression, seq_len)
    tokens = [kept_tokens(pattern, seq_len) for pattern in config.patterns]
    held = sum(tokens) if config.separate_kv else max(tokens)
    return entry * seq_len * config.n_kv_sets, entry * held + pooled


def _choice_bytes(config: "AttentionConfig") -> int:
    """The latest choice of blocks, int32, which later queries of a group use."""
    selection = config.pattern("selection")
    if selection is None or selection.query_group == 1:
        return 0
    return 4 * config.projection.n_kv_heads * selection.n_selected


def kept_tokens(pattern: "Pattern", seq_len: int) -> int:
    """Tokens of a row of seq_len that a pattern may still read: all, a window's last w, or those of a block l that is
    not yet pooled."""
    kept = {"window": "window", "compression": "compression_block"}.get(pattern.kind)
    return min(seq_len, getattr(pattern, kept)) if kept else seq_len


def n_slots(seq_len: int, stride: int) -> int:
    """Places for compression blocks in a row of seq_len tokens: one for each begun stride."""
    return -(-seq_len // stride)


def window_pairs(seq_len: int, window: int) -> int:
    """Visible pairs of a causal window: query t sees min(t + 1, window) keys."""
    window = min(window, seq_len)
    return window * (window + 1) // 2 + (seq_len - window) * window


def compression_pairs(seq_len: int, block: int, stride: int, query_group: int = 1) -> int:
    """Visible (query, compression block) pairs; with query_group q only queries 0, q, 2q, ... count.

    Block j is seen by the queries from its last token, j s + l - 1, on. Every q / gcd(s, q) blocks the first of them
    moves by a whole number of queries, so that the sum is one of that many arithmetic series, however long the row.
    """
    queries = -(-seq_len // query_group)
    ends = range(block - 1, seq_len, stride)
    shared = gcd(stride, query_group)
    total = 0
    for end in ends[: query_group // shared]:
        terms = len(range(end, seq_len, query_group // shared * stride))
        total += terms * (queries - -(-end // query_group)) - stride // shared * (terms * (terms - 1) // 2)
    return total


def selection_pairs(seq_len: int, block: int, n_selected: int) -> int:
    """Visible pairs of block selection: min(n, m + 1) blocks for a query in block m, its own block up to the query.

    The same for every choice: the query's own block is always chosen, and every other candidate lies in its past.
    """
    whole, rest = divmod(seq_len, block)
    few = min(n_selected, whole)
    past_blocks = few * (few - 1) // 2 + (whole - few) * (n_selected - 1)
    pairs = past_blocks * block * block + whole * block * (block + 1) // 2
    return pairs + (min(n_selected, whole + 1) - 1) * block * rest + rest * (rest + 1) // 2
