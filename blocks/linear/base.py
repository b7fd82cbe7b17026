"""The module that every linear mixer subclasses: maps, convolution, state, cache, initial weights.

Legend of the shape suffixes: blocks/base.py; here D is the width of a key, V that of a value.
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from zoo.blocks.context import Context, Step
from zoo.blocks.linear.cache import StateCache
from zoo.blocks.linear.config import ResolvedLinear
from zoo.blocks.parts import linear
from zoo.kernels import linear_attention, rms_norm, short_convolution
from zoo.kernels.layout import over, wide

LENGTH_EPS = 1e-6  # added to the squared length of queries and keys, as in fla and transformers
MOST_DECAY = 16.0  # A is drawn from [1, 16], time steps from [0.001, 0.1], as in Mamba-2's code
TIME_STEPS = (1e-3, 1e-1)


class Taken(NamedTuple):
    """What the state takes up, and how it is read: arguments of `kernels.linear_attention`. The decay is its log."""

    q_BTKD: torch.Tensor
    k_BTKD: torch.Tensor
    v_BTHV: torch.Tensor
    decay: torch.Tensor
    beta_BTH: torch.Tensor | None
    scale: float


class LinearMixer(nn.Module):
    """y = W_O out(o), o_t = q_t^T S_t: the state S takes up keys and values and decays.

    input: the maps that read x, one after the other, [query; key; value; ...]; the convolution reads the first three.
    A subclass makes the arguments of the state in `taken`, and norms and gates what is read of it in `read`.
    """

    def __init__(self, mixer: ResolvedLinear):
        super().__init__()
        config: Any = mixer  # of the kind, which has fields of its own
        self.config = config
        self.widths = config.rows()
        self.input = linear(mixer.d_model, sum(self.widths.values()))
        for name, (inputs, outputs) in config.maps().items():
            self.add_module(name, linear(inputs, outputs))
        size, channels = config.conv_size, config.conv_channels
        self.conv_weight = nn.Parameter(torch.empty(channels, size)) if size else None
        self.conv_bias = nn.Parameter(torch.zeros(channels)) if size and config.conv_bias else None
        self.output = linear(config.n_heads * config.v_head_dim, mixer.d_model)

    def taken(self, made: dict[str, torch.Tensor]) -> Taken:
        """made: the rows of `input` by name, those of queries, keys and values convolved."""
        raise NotImplementedError

    def read(self, o_BTHV: torch.Tensor, made: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the output map reads, [B, T, H V]."""
        raise NotImplementedError

    def forward(self, x_BTC: torch.Tensor, context: Context | Step, cache: StateCache | None = None) -> torch.Tensor:
        """x_BTC: [B, T, C] floating; `context` made for the same B and T. Returns y_BTC.

        With a cache, x are the tokens that a Step (the context) appends to it.
        """
        if x_BTC.shape[1] != context.positions_BT.shape[1]:
            found = f"{x_BTC.shape[1]}, the context is for {context.positions_BT.shape[1]}"
            raise ValueError(f"{self.config.kind}: x must have as many tokens as the context; found {found}")
        whole = self.input(x_BTC)
        state, tail = (None, None) if cache is None else cache.before(cast(Step, context))
        if self.conv_weight is not None:
            mixed, rest = whole.split([self.config.conv_channels, whole.shape[-1] - self.config.conv_channels], -1)
            options = {"documents": context.documents, "tail_BNC": tail}
            convolved = short_convolution(mixed, self.conv_weight, self.conv_bias, **options)
            if cache is not None:
                cache.keep_tail(mixed, cast(Step, context))
            parts = convolved.split(list(self.widths.values())[:3], -1) + rest.split(list(self.widths.values())[3:], -1)
        else:
            parts = whole.split(list(self.widths.values()), -1)
        made = dict(zip(self.widths, parts, strict=True))
        taken = self.taken(made)
        if cache is not None:
            taken = _without_padding(taken, cast(Step, context))
        o_BTHV, state = linear_attention(
            *taken[:4],
            beta_BTH=taken.beta_BTH,
            scale=taken.scale,
            documents=context.documents,
            state_BHDV=state,
            keep_state=cache is not None,
        )
        if cache is not None:
            cache.keep_state(state)
        return self.output(self.read(o_BTHV, made))

    def map(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """One of the maps of the config's `maps`, by name."""
        return getattr(self, name)(x)

    def new_cache(self, batch: int, max_len: int, device=None, dtype=None) -> StateCache:
        """An empty cache for `batch` rows; by default of torch's device and dtype. max_len makes no difference."""
        return StateCache.empty(self.config, batch, device, dtype)

    def initialise(self, generator: torch.Generator, std: float, residual_std: float) -> None:
        """Draw all weights."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, residual_std if module is self.output else std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
        self.draw_own(generator)

    @torch.no_grad()
    def draw_own(self, generator: torch.Generator | None = None) -> None:
        """Draw what no module inside draws: the convolution, as torch draws one, and decays, as `draw_decays`.

        A subclass calls it at the end of `__init__`, for who builds one block alone.  generator: default torch's own.
        """
        if self.conv_weight is not None:
            bound = self.conv_weight.shape[1] ** -0.5
            self.conv_weight.uniform_(-bound, bound, generator=generator)
        self.draw_decays(generator)

    def draw_decays(self, generator: torch.Generator | None) -> None:
        """Initial values of what is no linear map and no norm, if there is any."""


def unit_length(x_BTKD: torch.Tensor) -> torch.Tensor:
    """x / sqrt(|x|^2 + 1e-6) of each head, by the kernel of the norm, which keeps only x for the backward pass."""
    width = x_BTKD.shape[-1]
    weight_D = torch.full((width,), width**-0.5, dtype=wide(x_BTKD[:0]).dtype, device=x_BTKD.device)
    return rms_norm(x_BTKD.contiguous(), weight_D, eps=LENGTH_EPS / width)


def draw_rates(rates: torch.Tensor, generator: torch.Generator | None) -> None:
    """Logs of rates in [1, 16], evenly."""
    rates.uniform_(1.0, MOST_DECAY, generator=generator).log_()


def draw_time_steps(bias: torch.Tensor, generator: torch.Generator | None) -> None:
    """Biases whose softplus lies between 0.001 and 0.1, evenly on a logarithmic scale."""
    least, most = (math.log(step) for step in TIME_STEPS)
    steps = bias.uniform_(least, most, generator=generator).exp()
    bias.copy_(steps + (-torch.expm1(-steps)).log())


def _without_padding(taken: Taken, step: Step) -> Taken:
    """Tokens that are padding leave the state as it is: no decay, no key, and nothing taken out."""
    new_BT = step.new_BT
    if new_BT is None:
        return taken
    k_BTKD, decay = (torch.where(over(new_BT, x), x, 0.0) for x in (taken.k_BTKD, taken.decay))
    beta_BTH = None if taken.beta_BTH is None else torch.where(over(new_BT, taken.beta_BTH), taken.beta_BTH, 0.0)
    return taken._replace(k_BTKD=k_BTKD, decay=decay, beta_BTH=beta_BTH)
