"""The cost of a block: parameters, forward FLOPs, cache elements, and how pairs are counted. No torch.

FLOPs are those of matrix products, 2 m n k each, in one forward pass over one row of `seq_len` tokens (one document).
Attention counts exactly the (query, key) pairs that are visible, 2 (d_qk + d_v) a pair and head; nothing is counted for
norms, rotations, softmax, gates' sigmoids, mean pooling (additions) and the sorting of importances. An implementation
that multiplies masked pairs as well does more work than this.
"""

from dataclasses import dataclass
from math import gcd

FLOAT, BF16, INT32 = 4, 2, 4  # bytes of an element


@dataclass(frozen=True)
class Cost:
    """The cost of one layer on one row.

    parameters, flops: by part.  cache_nominal_elements: keys and values (or latent and rotary key) of every token, or
    a state of fixed size;  cache_held_elements: what the cache tensors occupy, with pooled entries, and only the tokens
    still needed.  cache_choice_bytes: of the latest choice of blocks, which is held in addition, whatever the dtype.
    cache_state_elements: of a state, which is held in addition, in float32 or wider.
    """

    parameters: dict[str, int]
    flops: dict[str, float]
    cache_nominal_elements: int
    cache_held_elements: int
    cache_choice_bytes: int = 0
    cache_state_elements: int = 0

    def cache_held_bytes(self, bytes_per_element: int) -> int:
        """What the cache tensors of one row occupy, its elements being so wide."""
        state = max(bytes_per_element, FLOAT) * self.cache_state_elements
        return bytes_per_element * self.cache_held_elements + state + self.cache_choice_bytes

    @property
    def total_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def total_flops(self) -> float:
        return sum(self.flops.values())


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


def everything_from(first: int, seq_len: int) -> int:
    """Bits of the positions first .. seq_len - 1."""
    return (1 << seq_len) - (1 << first) if first < seq_len else 0


def lowest(known: int) -> int:
    """The lowest position whose bit is set."""
    return (known & -known).bit_length() - 1


def spread(known: int, count: int, step: int = 1) -> int:
    """Bits of the positions p, p + step, ..., p + (count - 1) step for every bit p of `known`."""
    found, done = known, 1
    while done < count:
        more = min(done, count - done)
        found |= found << (more * step)
        done += more
    return found
