"""One layer of the decoder: attention and feed-forward, the norms around them, and the residual stream.

Shapes: B batch, T tokens, C model width.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from zoo.blocks.context import Context, Step
from zoo.blocks.drawing import drawn
from zoo.blocks.interface import AtDepth
from zoo.blocks.making import PartError, check_module, described, is_own, make_module
from zoo.feed_forward.base import FeedForwardConfig
from zoo.model import fused
from zoo.recipe import LayerConfig, ModelConfig


class AddRMSNorm(nn.Module):
    """The addition to the residual stream and the norm after it, with a learned scale; statistics in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor, delta: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """x + delta (x itself if that is None), and its norm in the dtype that products have, all [..., C]."""
        return fused.add_norm(x, delta, self.weight, self.eps)


class AddLayerNorm(nn.Module):
    """As AddRMSNorm, with the mean subtracted (Ba 2016, arXiv 1607.06450) and, if asked, a learned bias."""

    def __init__(self, width: int, eps: float, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: torch.Tensor, delta: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """As of AddRMSNorm."""
        return fused.add_layer_norm(x, delta, self.weight, self.bias, self.eps)


def make_norm(model: ModelConfig) -> nn.Module:
    """A norm of the residual stream, as the recipe says."""
    if model.norm == "layer":
        return AddLayerNorm(model.d_model, model.norm_eps, model.norm_bias)
    return AddRMSNorm(model.d_model, model.norm_eps)


def make_feed_forward(config: FeedForwardConfig, d_model: int) -> nn.Module:
    """The feed-forward of a layer.  Raises PartError if that of another package cannot be made."""
    what = f"feed-forward {config.kind!r}"
    return _watched(what, make_module(what, config.module, config, d_model))


def _made_mixer(layer: LayerConfig) -> Any:
    """The mixer of a layer.  Raises PartError if that of another package cannot be made."""
    if is_own(type(layer.config)):
        return layer.mixer.build()
    what = f"block {layer.name!r}"
    try:
        with drawn(True):
            module = layer.mixer.build()
    except PartError:
        raise
    except Exception as error:  # the code of another package
        raise PartError(f"{what}: {type(layer.config).__name__} cannot be built: {described(error)}") from error
    return _watched(what, check_module(f"{what}: what {type(layer.config).__name__} builds", module))


def _watched(what: str, module: nn.Module) -> nn.Module:
    """The module; one of another package is checked for what it returns."""
    if not is_own(type(module)):
        module.register_forward_hook(partial(_check_output, what))
    return module


def _check_output(what: str, module: nn.Module, arguments: tuple, result: Any) -> None:
    asked = list(arguments[0].shape)
    found = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
    if found != asked:
        must = f"must return a tensor as large as its input, {asked}"
        raise PartError(f"{what}: {type(module).__name__}.forward {must}; found {found}")


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): the residual layer; fields of the recipe change it.

    norm_place: norms stand before the two parts, after them (x + norm(attention(x))), or both; or x becomes norm(x)
    before each part, x = norm(x), x + attention(x).  parallel: both parts read x, and share the norm before them.
    residual_scale: multiplies what either part adds.  stream_scale: multiplies x before that is added.
    The last addition is left to whoever reads the residual stream next, because it is one kernel with the norm there:
    a layer takes the stream and what the layer before adds to it, and returns the same two.
    """

    def __init__(self, model: ModelConfig, layer: LayerConfig):
        super().__init__()
        before, after = model.norm_place != "after", model.norm_place in ("after", "both")
        self.parallel, self.norm_stream = model.parallel, model.norm_place == "stream"
        self.residual_scale, self.stream_scale = model.residual_scale, model.stream_scale
        self.attention_norm = make_norm(model) if before else None
        self.attention = _made_mixer(layer)
        if layer.kv_layer is not None:
            self.attention.kv_layer = layer.kv_layer
        if isinstance(self.attention, AtDepth):  # modules of `multi_token` come after the last layer, and are as it is
            self.attention.at_depth(min(layer.index, layer.n_layers - 1), layer.n_layers)
        self.attention_post_norm = make_norm(model) if after else None
        self.feed_forward_norm = make_norm(model) if before and not model.parallel else None
        ffn = layer.feed_forward
        self.feed_forward = make_feed_forward(ffn, model.d_model)
        self.feed_forward_post_norm = make_norm(model) if after else None

    def forward(
        self, x_BTC: torch.Tensor, delta_BTC: torch.Tensor | None, context: Context | Step, *cache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """delta_BTC: not yet added to x; None before the first layer.  cache: the layer's, to append the tokens to."""
        x_BTC, read_BTC = self._read(self.attention_norm, x_BTC, delta_BTC)
        added_BTC = self._added(self.attention_post_norm, self.attention(read_BTC, context, *cache))
        if self.parallel:
            x_BTC = x_BTC + added_BTC
        else:
            x_BTC, read_BTC = self._read(self.feed_forward_norm, x_BTC, added_BTC)
        return x_BTC, self._added(self.feed_forward_post_norm, self.feed_forward(read_BTC, context))

    def _read(
        self, norm: nn.Module | None, x_BTC: torch.Tensor, delta_BTC: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream that a part is added to, and what the part reads."""
        x_BTC, read_BTC = _read(norm, x_BTC, delta_BTC)
        if self.norm_stream:
            x_BTC = read_BTC.to(x_BTC.dtype)
        return x_BTC if self.stream_scale == 1 else x_BTC * self.stream_scale, read_BTC

    def _added(self, norm: nn.Module | None, y_BTC: torch.Tensor) -> torch.Tensor:
        """What the result of a part adds to the stream."""
        if norm is not None:
            y_BTC = norm(y_BTC, None)[1]
        return y_BTC if self.residual_scale == 1 else y_BTC * self.residual_scale


def _read(
    norm: nn.Module | None, x_BTC: torch.Tensor, delta_BTC: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The stream with delta added, and what a part reads of it: its norm, or without one the stream as products read
    it, rounded once for all of them."""
    if norm is not None:
        return norm(x_BTC, delta_BTC)
    if delta_BTC is not None:
        x_BTC = x_BTC + delta_BTC
    return x_BTC, x_BTC.to(fused.compute_dtype(x_BTC))
