"""What a linear mixer says of itself without torch: maps, state, cost. No torch.

A linear mixer reads x through one map `input`, runs queries, keys and values through a short convolution, adds them up
in a state that decays (`kernels.linear_attention`), gates and norms what it reads of the state, and maps it to the
residual stream. A kind states its fields, the rows of `input`, and the module that runs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from zoo.blocks.checked import Checked, Count, FieldProblem, Positive, Size
from zoo.blocks.config import DEFAULT_SEQ_LEN, BlockConfig
from zoo.blocks.cost import BF16, FLOAT, Cost, everything_from, lowest
from zoo.blocks.registry import load
from zoo.blocks.resolved import ResolvedMixer

SOLVED = 64  # of each token and head, the row of the triangular system that the delta rule's kernels keep

KeyDim = Annotated[Size | None, Field(description="Channels of a query or key head. Default: d_model / n_heads.")]
ValueDim = Annotated[Size | None, Field(description="Channels of a value head. Default: head_dim.")]
ConvSize = Annotated[int, Field(strict=True, ge=0, le=16)]


def known(value: int | None) -> int:
    """A field with a derived default, of a complete config."""
    assert value is not None, "the config is complete"
    return value


class LinearFields(Checked):
    """Heads, the convolution and the norm, which all kinds have."""

    n_heads: Count | None = Field(8, description="Value heads H, each with a state of its own.")
    conv_size: ConvSize = Field(
        4, description="Tokens of the short convolution on queries, keys and values; 0: no convolution."
    )
    norm_eps: Positive = Field(1e-6, le=1, description="Epsilon of the RMSNorm of the output.")


class LinearConfig(BlockConfig):
    """The config of a linear mixer. `filled` gives the fields that are derived; the properties below need them."""

    module: ClassVar[str]  # "package.module:Class", called as Class(resolved)
    title: ClassVar[str]  # in tables
    delta: ClassVar[bool]  # whether a key's old value is taken out of the state
    by_channel: ClassVar[bool]  # whether each channel of a key decays at its own rate

    if TYPE_CHECKING:  # fields of every kind, some derived
        conv_size: int
        n_heads: Any
        v_head_dim: Any

    def filled(self, d_model: int | None) -> dict[str, Any]:
        """The fields that have a derived default, each with its value; None where d_model is needed and not known."""
        raise NotImplementedError(f"{type(self).__name__} does not define filled")

    def complete(self, d_model: int) -> Self:
        """The same config with every number known."""
        return type(self)(**{**dict(self), **self.filled(d_model)})

    @property
    def key_dim(self) -> int:
        """Channels of a query or key head: rows of a head's state."""
        raise NotImplementedError(f"{type(self).__name__} does not define key_dim")

    def rows(self) -> dict[str, int]:
        """Rows of the map `input` by name: `query`, `key`, `value` first, which the convolution reads."""
        raise NotImplementedError(f"{type(self).__name__} does not define rows")

    def maps(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear maps that read what `input` made, by name."""
        return {}

    def vectors(self) -> dict[str, int]:
        """Parameters that are no linear map, by part; without those of the convolution."""
        raise NotImplementedError(f"{type(self).__name__} does not define vectors")

    @property
    def conv_bias(self) -> bool:
        return False

    def resolve(self, d_model: int, seq_len: int = DEFAULT_SEQ_LEN, part: str | None = None) -> "ResolvedLinear":
        self.check(d_model, part)
        return ResolvedLinear(self.complete(d_model), d_model)

    def cost(self, d_model: int, seq_len: int, part: str | None = None) -> Cost:
        return self.resolve(d_model, seq_len, part).cost(seq_len)

    def build(self, d_model: int, part: str | None = None) -> Any:
        return self.resolve(d_model, part=part).build()


@dataclass(frozen=True)
class ResolvedLinear(ResolvedMixer):
    """A linear mixer whose numbers are all known. config: with no field None."""

    config: LinearConfig
    d_model: int

    def build(self) -> Any:
        return load(self.config.module)(self)

    def describe(self) -> str:
        heads, width, n_values = self.state
        return f"{self.config.title}, state {heads} x {width} x {n_values}"

    @property
    def state(self) -> tuple[int, int, int]:
        """Shape of the state of one row: heads, key channels, value channels."""
        return self.config.n_heads, self.config.key_dim, self.config.v_head_dim

    @property
    def conv_channels(self) -> int:
        """Channels that the convolution reads; 0 without one."""
        rows = self.config.rows()
        return sum(rows[name] for name in ("query", "key", "value")) if self.config.conv_size else 0

    @property
    def tail(self) -> tuple[int, int]:
        """Shape of what the convolution still needs of one row: tokens and channels."""
        return max(self.config.conv_size - 1, 0), self.conv_channels

    def cost(self, seq_len: int) -> Cost:
        if seq_len < 1:
            raise ValueError(f"cost: seq_len must be at least 1; found {seq_len}")
        heads, width, n_values = self.state
        weights = self._weights()
        convolution = self.conv_channels * (self.config.conv_size + self.config.conv_bias)
        vectors = self.config.vectors()
        parameters = {**weights, "convolution": convolution, **vectors}
        products = 3 if self.config.delta else 2  # what the state holds for a key, what it takes up, what is read of it
        flops = {part: 2.0 * seq_len * count for part, count in weights.items()}
        flops["state"] = 2.0 * products * seq_len * heads * width * n_values
        state, (tokens, channels) = heads * width * n_values, self.tail
        held = tokens * channels
        counted = {part: count for part, count in parameters.items() if count}
        return Cost(counted, flops, state + held, held, cache_state_elements=state)

    def _weights(self) -> dict[str, int]:
        config = self.config
        maps = {name: inputs * outputs for name, (inputs, outputs) in config.maps().items()}
        written = config.n_heads * config.v_head_dim * self.d_model
        return {"input": self.d_model * sum(config.rows().values()), **maps, "output": written}

    def reach(self, known: int, seq_len: int) -> dict[str, int]:
        """A state passes on all that came before."""
        return {"state": everything_from(lowest(known), seq_len)}

    def activation_bytes(self, seq_len: int) -> int:
        """x and what `input` and the other maps made of it, queries, keys and values as the state takes them up, decays
        in float32, what was read of the state, its norm and its gate."""
        config = self.config
        heads, width, n_values = self.state
        # Kernels of the delta rule read the keys that heads share; for the others they are copied.
        keys = config.rows()["query"] if config.delta else heads * width
        taken = 2 * keys + heads * n_values
        made = sum(config.rows().values()) + self.conv_channels + sum(outputs for _, outputs in config.maps().values())
        decays = heads * (width if config.by_channel else 1) + (heads if config.delta else 0)
        system = heads * SOLVED if config.delta else 0
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
