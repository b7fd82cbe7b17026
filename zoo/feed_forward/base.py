"""What a feed-forward says of itself without torch: its fields, parameters, FLOPs, and what it keeps for the backward.

A feed-forward is two classes: a config, which subclasses `FeedForwardConfig`, and the module that runs, named by
`module` and built as Class(config, d_model).
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol, Self

from pydantic import Field

from zoo.blocks.checked import NUMBER, Fact, Facts, Kinded

if TYPE_CHECKING:
    import torch

    from zoo.blocks.context import Context, Step

Count = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]


class FeedForwardConfig(Kinded):
    """The feed-forward network of a layer, as a recipe writes it.

    A subclass states `module`, `parameters` and `activation_bytes`; `active_parameters` and `flops` too if a token
    does not use every parameter once, as in a mixture of experts.
    """

    module: ClassVar[str]  # "package.module:Class" of the module that runs

    def resolve(self, d_model: int, seq_len: int) -> Self:
        """The same with every number known. A config without derived fields is its own resolved form."""
        return self

    def describe(self) -> str:
        """A few words for tables: `swiglu 704`."""
        return self.kind

    def facts(self, d_model: int, seq_len: int, part: str | None = None) -> Facts:
        """What a feed-forward of another package is asked for."""
        yield Fact("resolve", lambda: self.resolve(d_model, seq_len), (FeedForwardConfig,))
        yield Fact("describe", self.describe, (str,))
        made = self.resolve(d_model, seq_len)
        for name in ("parameters", "active_parameters", "flops", "activation_bytes"):
            yield Fact(name, partial(getattr(made, name), d_model), NUMBER)

    def parameters(self, d_model: int) -> int:
        """All parameters of one layer."""
        raise NotImplementedError(f"{type(self).__name__} does not define parameters")

    def active_parameters(self, d_model: int) -> int:
        """The parameters that one token uses."""
        return self.parameters(d_model)

    def flops(self, d_model: int) -> float:
        """Forward FLOPs of one token: a multiplication and an addition for each parameter that it uses."""
        return 2.0 * self.active_parameters(d_model)

    def activation_bytes(self, d_model: int) -> int:
        """Bytes that autograd keeps of one token between forward and backward, its input among them."""
        raise NotImplementedError(f"{type(self).__name__} does not define activation_bytes")


class FeedForward(Protocol):
    """The module that runs: maps each token by itself.  x_BTC and the result: [batch, tokens, d_model].

    Initial weights: every nn.Linear is drawn from N(0, init_std^2), the one called `output` with a smaller deviation.
    A module with parameters of another form defines `initialise` (`zoo.blocks.interface.SelfInitialised`).
    A loss of its own, such as one that balances experts, it hands to `context.add_loss`.
    """

    def __call__(self, x_BTC: "torch.Tensor", context: "Context | Step") -> "torch.Tensor": ...
