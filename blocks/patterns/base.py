"""What a pattern says of itself without torch: the keys it sees, what it costs, what it caches, how it is described.

A pattern is two classes: a config, which subclasses `PatternConfig` and is all that counting, checking and documenting
need, and the class that runs (`blocks.interface.Pattern`), named by `module` and imported when a block is built.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, Self

from zoo.blocks.checked import NUMBER, ROW, Fact, Facts, FieldProblem, Kinded
from zoo.blocks.cost import BF16, FLOAT

if TYPE_CHECKING:
    from zoo.blocks.projections.base import ResolvedProjection
    from zoo.blocks.resolved import ResolvedAttention


SCORE_OPTIONS = ("sinks", "score_softcap")  # that a softmax over keys can have: `ScoreFields`


@dataclass(frozen=True)
class Buffer:
    """Memory of one row that a pattern keeps in addition to the tokens: `capacity` slots of each tensor of `shapes`.

    dtype: None for the dtype of the cache, or the name of another torch dtype.  fill: the initial value.
    """

    shapes: Mapping[str, tuple[int, ...]]
    capacity: int
    dtype: str | None = None
    fill: int = 0

    @property
    def elements(self) -> int:
        """Elements that one row occupies."""
        return self.capacity * sum(prod(shape) for shape in self.shapes.values())

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of the buffer's own dtype: the number of bits that its name ends with."""
        bits = re.search(r"\d+$", self.dtype or "")
        if bits is None:
            raise ValueError(f"buffer: dtype must end with its number of bits, such as int32; found {self.dtype!r}")
        return int(bits[0]) // 8


class PatternConfig(Kinded):
    """Which keys a query sees. A subclass states at least `module`, `pairs`, `pairs_formula` and `reach`.

    Methods that get a `ResolvedAttention` may read the projection and the other patterns of the block. `seq_len` is the
    length of the row that is counted, in tokens.
    """

    module: ClassVar[str]  # "package.module:Class" of the class that runs
    needs: ClassVar[tuple[str, ...]] = ()  # kinds of the patterns whose results it reads
    score_options: ClassVar[tuple[str, ...]] = ()  # of `ScoreFields`, those that it can have
    reads_shared: ClassVar[bool] = (
        False  # True if it reads keys and values of tokens alone, so that layers may share them
    )
    reads_tokens: ClassVar[bool] = True  # False if it attends only to keys of its own
    keeps_queries: ClassVar[bool] = (
        False  # True if its backward pass reads the queries where they lie: in the zoo's own, views of a product
    )
    colour: ClassVar[int] = 7  # place in the palette of strips and maps (zoo/report/colours.py); 7 is grey

    def resolve(self, d_model: int, seq_len: int) -> Self:
        """The same pattern with every number known.

        A config without derived fields is its own resolved form. seq_len: the longest row that the model is made for.
        """
        return self

    def problems_beside(self, others: Mapping[str, "PatternConfig"]) -> list[FieldProblem]:
        """What is wrong between this pattern and the others of its block, by kind."""
        return []

    def describe(self) -> str:
        """A few words for tables: `window 512`."""
        return self.kind

    def facts(self, d_model: int, seq_len: int, part: str | None = None) -> Facts:
        """What a pattern of another package is asked for."""
        row = min(seq_len, ROW)
        yield Fact("resolve", lambda: self.resolve(d_model, seq_len), (PatternConfig,))
        made = self.resolve(d_model, seq_len)
        yield Fact("describe", self.describe, (str,))
        yield Fact("pairs", lambda: made.pairs(row), NUMBER)
        yield Fact("reach", lambda: made.reach(1, row), (int,))
        yield Fact("kept_tokens", lambda: made.kept_tokens(row), (int,))

    # Which keys are seen.

    def pairs(self, seq_len: int) -> int:
        """Visible (query, key) pairs of one row and head."""
        raise NotImplementedError(f"{type(self).__name__} does not define pairs")

    def reach(self, known: int, seq_len: int) -> int:
        """The positions that can see, in one layer, a position whose bit is set in `known`, as bits likewise.

        `blocks.cost.spread` and `everything_from` make most of them. A pattern that chooses sees what it may choose.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define reach")

    @property
    def span(self) -> int:
        """Tokens that a query reads at most; 0 if that is not bounded. Chooses the size of maps."""
        return 0

    def tokens_of_keys(self, seq_len: int) -> list[range] | None:
        """The tokens that each key stands for; None if the keys are the tokens."""
        return None

    # What is counted.

    def parameters(self, projection: "ResolvedProjection") -> dict[str, int]:
        """Parameters of the pattern itself, by part."""
        return {}

    def flops(self, attention: "ResolvedAttention", seq_len: int) -> dict[str, float]:
        """Forward FLOPs of matrix products on one row, by part."""
        return {self.kind: attention.projection.flops_per_pair * self.pairs(seq_len)}

    def made_keys(self, seq_len: int) -> int:
        """Keys and values that it makes of cached entries other than those of the tokens."""
        return 0

    def activation_bytes(self, attention: "ResolvedAttention", seq_len: int) -> float:
        """Bytes that autograd keeps of one row: by default the output in bf16 and the log-sum-exp in float32."""
        projection = attention.projection
        return seq_len * projection.n_heads * (BF16 * projection.v_head_dim + FLOAT)

    # What is cached.

    def kept_tokens(self, seq_len: int) -> int:
        """Latest tokens of a row of seq_len that later queries may still read."""
        return seq_len

    def lookback(self, ring: bool) -> int | None:
        """Tokens before a new one that are read by their distance to it; None if none are.

        ring: whether the cache holds fewer tokens than a row may have.
        """
        return None

    def buffers(self, projection: "ResolvedProjection", seq_len: int) -> dict[str, Buffer]:
        """What one row of up to seq_len tokens keeps in addition to the tokens, by name."""
        return {}

    # Formulas of the documentation: Python expressions in field names.

    @property
    def pairs_formula(self) -> str:
        """`pairs` as an expression."""
        raise NotImplementedError(f"{type(self).__name__} does not define pairs_formula")

    def flops_formulas(self, attention: "ResolvedAttention") -> dict[str, str]:
        """`flops` as expressions, by part."""
        return {self.kind: f"2*n_heads*({attention.projection.width_formula} + v_head_dim)*{self.pairs_formula}"}

    @property
    def kept_formula(self) -> str:
        """`kept_tokens` as an expression."""
        return "seq_len"

    @property
    def made_keys_formula(self) -> str:
        """`made_keys` as an expression, "" for none."""
        return ""

    @property
    def pooled_formula(self) -> str | None:
        """Further cached entries of a token's size, as an expression; "" for none, None if not stated."""
        return ""
