"""What a linear mixer says of itself without torch: maps, state, cost. No torch.

A linear mixer reads x through one map `input`, runs queries, keys and values through a short convolution, adds them up
in a state that decays (`kernels.linear_attention`), gates and norms what it reads of the state, and maps it to the
residual stream. A kind states its fields, the rows of `input`, and the module that runs.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from zoo.blocks.checked import Checked, Count, FieldProblem, Positive, Size, resolved
from zoo.blocks.config import DEFAULT_SEQ_LEN, BlockConfig
from zoo.blocks.cost import BF16, FLOAT, Cost, everything_from, lowest
from zoo.blocks.making import make_module
from zoo.blocks.resolved import ResolvedMixer

SOLVED = 64  # of each token and head, the row of the triangular system that the delta rule's kernels keep

KeyDim = Annotated[Size | None, Field(description="Channels of a query or key head. Default: d_model / n_heads.")]
ValueDim = Annotated[Size | None, Field(description="Channels of a value head. Default: head_dim.")]
ConvSize = Annotated[int, Field(strict=True, ge=0, le=16)]


class LinearFields(Checked):
    """Heads, the convolution and the norm, which all kinds have."""

    n_heads: Count | None = Field(8, description="Value heads H, each with a state of its own.")
    conv_size: ConvSize = Field(
        4, description="Tokens of the short convolution on queries, keys and values; 0: no convolution."
    )
    norm_eps: Positive = Field(1e-6, le=1, description="Epsilon of the RMSNorm of the output.")


class LinearConfig(BlockConfig):
    """The config of a linear mixer, as a recipe writes it: a field is None where `filled` derives it."""

    resolved: ClassVar[type["ResolvedLinear"]]  # the same with every number known

    def filled(self, d_model: int | None) -> dict[str, Any]:
        """The fields that have a derived default, each with its value; None where d_model is needed and not known."""
        raise NotImplementedError(f"{type(self).__name__} does not define filled")

    def resolve(self, d_model: int, seq_len: int = DEFAULT_SEQ_LEN, part: str | None = None) -> "ResolvedLinear":
        self.check(d_model, part)
        return resolved(self.resolved, {**dict(self), **self.filled(d_model), "d_model": d_model})

    def cost(self, d_model: int, seq_len: int, part: str | None = None) -> Cost:
        return self.resolve(d_model, seq_len, part).cost(seq_len)

    def build(self, d_model: int, part: str | None = None) -> Any:
        return self.resolve(d_model, part=part).build()


@dataclass(frozen=True)
class ResolvedLinear(ResolvedMixer):
    """A linear mixer whose numbers are all known, and the facts that follow from them."""

    module: ClassVar[str]  # "package.module:Class", called as Class(resolved)
    title: ClassVar[str]  # in tables
    delta: ClassVar[bool]  # whether a key's old value is taken out of the state
    by_channel: ClassVar[bool]  # whether each channel of a key decays at its own rate
    conv_bias: ClassVar[bool] = False

    kind: str
    d_model: int
    n_heads: int
    v_head_dim: int
    conv_size: int
    norm_eps: float

    @property
    @abstractmethod
    def key_dim(self) -> int:
        """Channels of a query or key head: rows of a head's state."""

    @abstractmethod
    def rows(self) -> dict[str, int]:
        """Rows of the map `input` by name: `query`, `key`, `value` first, which the convolution reads."""

    def maps(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear maps that read what `input` made, by name."""
        return {}

    @abstractmethod
    def vectors(self) -> dict[str, int]:
        """Parameters that are no linear map, by part; without those of the convolution."""

    def build(self) -> Any:
        return make_module("linear block", self.module, self)

    def describe(self) -> str:
        heads, width, n_values = self.state
        return f"{self.title}, state {heads} x {width} x {n_values}"

    @property
    def state(self) -> tuple[int, int, int]:
        """Shape of the state of one row: heads, key channels, value channels."""
        return self.n_heads, self.key_dim, self.v_head_dim

    @property
    def conv_channels(self) -> int:
        """Channels that the convolution reads; 0 without one."""
        rows = self.rows()
        return sum(rows[name] for name in ("query", "key", "value")) if self.conv_size else 0

    @property
    def tail(self) -> tuple[int, int]:
        """Shape of what the convolution still needs of one row: tokens and channels."""
        return max(self.conv_size - 1, 0), self.conv_channels

    def cost(self, seq_len: int) -> Cost:
        if seq_len < 1:
            raise ValueError(f"cost: seq_len must be at least 1; found {seq_len}")
        heads, width, n_values = self.state
        weights = self._weights()
        convolution = self.conv_channels * (self.conv_size + self.conv_bias)
        parameters = {**weights, "convolution": convolution, **self.vectors()}
        products = 3 if self.delta else 2  # what the state holds for a key, what it takes up, what is read of it
        flops = {part: 2.0 * seq_len * count for part, count in weights.items()}
        flops["state"] = 2.0 * products * seq_len * heads * width * n_values
        state, (tokens, channels) = heads * width * n_values, self.tail
        held = tokens * channels
        counted = {part: count for part, count in parameters.items() if count}
        return Cost(counted, flops, state + held, held, cache_state_elements=state)

    def _weights(self) -> dict[str, int]:
        maps = {name: inputs * outputs for name, (inputs, outputs) in self.maps().items()}
        written = self.n_heads * self.v_head_dim * self.d_model
        return {"input": self.d_model * sum(self.rows().values()), **maps, "output": written}

    def reach(self, known: int, seq_len: int) -> dict[str, int]:
        """A state passes on all that came before."""
        return {"state": everything_from(lowest(known), seq_len)}

    def activation_bytes(self, seq_len: int) -> int:
        """x and what `input` and the other maps made of it, queries, keys and values as the state takes them up, decays
        in float32, what was read of the state, its norm and its gate."""
        heads, width, n_values = self.state
        # Kernels of the delta rule read the keys that heads share; for the others they are copied.
        keys = self.rows()["query"] if self.delta else heads * width
        taken = 2 * keys + heads * n_values
        made = sum(self.rows().values()) + self.conv_channels + sum(outputs for _, outputs in self.maps().values())
        decays = heads * (width if self.by_channel else 1) + (heads if self.delta else 0)
        system = heads * SOLVED if self.delta else 0
        per_token = BF16 * (self.d_model + made + taken + system + 4 * heads * n_values) + FLOAT * decays
        return int(seq_len * per_token)


def head_problems(fields: LinearConfig, d_model: int | None, n_heads: int | None, name: str) -> list[FieldProblem]:
    """What is wrong with a width that is d_model / n_heads unless it is given."""
    if d_model is None or n_heads is None or getattr(fields, name) is not None or d_model % n_heads == 0:
        return []
    return [(("n_heads",), f"must divide d_model ({d_model}) where {name} is not given; found {n_heads}")]


def share(d_model: int | None, parts: int) -> int | None:
    """d_model / parts where it comes out even."""
    return None if d_model is None or d_model % parts else d_model // parts
