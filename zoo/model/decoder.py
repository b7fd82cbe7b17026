"""The decoder: token embedding, layers of an attention block and a feed-forward each (layer.py), norm, head.

Shapes: B batch, T tokens, C model width, N tokens of several rows, V vocabulary.
"""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo.blocks.context import Context
from zoo.blocks.drawing import DrawnLater, drawn
from zoo.blocks.interface import AfterBatch, Caching, SelfInitialised
from zoo.blocks.parts import linear
from zoo.counting.model_cost import model_cost
from zoo.errors import ZooError
from zoo.kernels.documents import Documents
from zoo.model import fused
from zoo.model.cache import ModelCache
from zoo.model.layer import Layer, make_norm
from zoo.model.multi_token import MultiTokenModule, further_labels
from zoo.recipe import ModelConfig, Recipe, load_recipe


class Embedding(DrawnLater, nn.Embedding):
    """The embedding of the zoo's own models."""


class Decoder(nn.Module):
    """A decoder-only language model whose layers follow the recipe's schedule.

    `config` is the recipe's model section; `activation_checkpointing` (default False) keeps only each layer's input
    and computes the rest again in the backward pass; `narrow_stream` (default False) keeps the residual stream in the
    dtype of the products (they differ under autocast on CUDA); `max_documents` (default None: not known) is the most
    documents that a row of a batch holds, without which packed rows on a GPU are given room for one document a token.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.narrow_stream = False
        self.max_documents: int | None = None
        self.embedding: nn.Embedding = Embedding(config.vocab_size, config.d_model)
        self.loaded_from: Path | None = None  # the folder of its weights, where `zoo.generate` finds the tokenizer
        self.layers = nn.ModuleList(Layer(config, layer) for layer in config.expanded())
        self.norm = make_norm(config)
        # Sums over the batch so far: what was added to the loss, times targets, and the targets; and the summed loss of
        # the modules of `multi_token`, and their targets.
        self._sums: dict[str, torch.Tensor] = {}
        self.head: nn.Linear | None = None if config.tie_embeddings else linear(config.d_model, config.vocab_size)
        modules = (MultiTokenModule(config, layer) for layer in config.multi_token_layers())
        self.multi_token = nn.ModuleList(modules)  # last, so that the rest is drawn as without them

    @property
    def head_weight(self) -> torch.Tensor:
        """[V, C]: the output head's matrix, which is the embedding's when the two are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """The residual stream [B, T, C] before the first layer: the embeddings, times `embedding_scale`."""
        x_BTC, scale = self.embedding(tokens_BT), self.config.embedding_scale
        return x_BTC if scale == 1 else x_BTC * scale

    def logits(self, hidden_NC: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] of final hidden states [..., C]: the head, then `logit_scale` and `logit_softcap`."""
        logits_NV = nn.functional.linear(hidden_NC, self.head_weight.to(hidden_NC.dtype))
        return fused.final_logits(logits_NV, self.config.logit_scale, self.config.logit_softcap)

    def forward(
        self,
        tokens_BT: torch.Tensor,
        document_starts_BT: torch.Tensor | None = None,
        *,
        cache: ModelCache | None = None,
        n_new_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [B, T, V] of the next token at every position.

        tokens_BT: int64 in [0, V).  document_starts_BT: bool, True where a document begins; read only when the
        recipe says `document_mask: true`, and then None means that each row is one document.
        cache: the tokens follow those that it holds, and are appended to it: of row b the first n_new_B[b], int64, the
        rest being padding, or all. No gradient is kept then, and each row is one document.
        """
        if cache is None:
            hidden_BTC = self.hidden(tokens_BT, document_starts_BT)
        elif self.config.document_mask and document_starts_BT is not None:
            raise ValueError("cache: each of its rows is one document, so document_starts_BT must be None")
        else:
            hidden_BTC = self.append(tokens_BT, cache, n_new_B)
        return self.logits(hidden_BTC)

    @torch.no_grad()
    def next_logits(
        self, tokens_BT: torch.Tensor, cache: ModelCache, n_new_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Append tokens to the cache, as `forward` does; return the logits [B, V] after the last new one of each row.

        The logits of a row without a new token mean nothing.
        """
        hidden_BTC = self.append(tokens_BT, cache, n_new_B)
        if n_new_B is None:
            last_BC = hidden_BTC[:, -1]
        else:
            last_BC = hidden_BTC[torch.arange(len(n_new_B), device=n_new_B.device), (n_new_B - 1).clamp(min=0)]
        return self.logits(last_BC)

    def new_cache(
        self, batch: int, max_len: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ModelCache:
        """An empty cache for `batch` rows of up to max_len tokens; device and dtype default to the weights'.

        Raises ZooError if a layer is of a block that keeps no cache.
        """
        weight = self.embedding.weight
        layers = []
        for index, layer in enumerate(self.layers):
            if not isinstance(layer.attention, Caching):
                block = type(layer.attention).__name__
                raise ZooError(f"layer {index}: its block ({block}) keeps no cache; it needs the method new_cache")
            layers.append(layer.attention.new_cache(batch, max_len, device or weight.device, dtype or weight.dtype))
        return ModelCache(layers, batch, max_len, device or weight.device)

    @torch.no_grad()
    def append(self, tokens_BT: torch.Tensor, cache: ModelCache, n_new_B: torch.Tensor | None = None) -> torch.Tensor:
        """Final hidden states [B, T, C] of tokens that follow those of the cache, as in `forward`."""
        step = cache.begin(tokens_BT, n_new_B)
        x_BTC, delta_BTC = self.embed(tokens_BT), None
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x_BTC, delta_BTC = layer(x_BTC, delta_BTC, step, layer_cache)
        cache.end(step)
        return self.norm(x_BTC, delta_BTC)[1]

    def loss(
        self,
        tokens_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        document_starts_BT: torch.Tensor | None = None,
        reduction: str = "mean",
    ) -> torch.Tensor:
        """Cross-entropy in nats of labels_BT (int64, already shifted; -100 = no target) under the model.

        reduction: "mean" over the targets, or "sum".  A batch without a single target has loss 0 and zero gradients.
        In training mode what layers add (`Context.add_loss`) counts in the mean, and in the sum once for each target;
        so does the weighted loss of the modules of `multi_token`.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"loss: reduction must be 'mean' or 'sum'; found {reduction!r}")
        context = self._context(tokens_BT, document_starts_BT)
        hidden_BTC = self._hidden(tokens_BT, context)
        total = self._cross_entropy(hidden_BTC, labels_BT)
        n_targets = (labels_BT != fused.IGNORED).sum()
        added = []
        if self.training and self.multi_token:
            added.append(self._further_loss(hidden_BTC, tokens_BT, labels_BT, context))
        if self.training and context.losses:
            added.append(torch.stack([loss.float() for loss in context.losses]).sum() * n_targets)
        if added:
            extra = sum(added[1:], start=added[0])
            total = total + extra
            self._note("added_loss", extra, n_targets)
        return total if reduction == "sum" else total / n_targets.clamp(min=1)

    def _cross_entropy(self, hidden_BTC: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        """Summed over the targets."""
        logits = self.config.logit_scale, self.config.logit_softcap
        return fused.linear_cross_entropy(hidden_BTC.flatten(0, 1), self.head_weight, labels_BT.flatten(), *logits)

    def _further_loss(
        self, hidden_BTC: torch.Tensor, tokens_BT: torch.Tensor, labels_BT: torch.Tensor, context: Context
    ) -> torch.Tensor:
        """The weighted mean over the modules of `multi_token` of their summed cross-entropies."""
        assert self.config.multi_token is not None
        losses, counts = [], []
        for ahead, module in enumerate(self.multi_token, start=1):
            embedded_BTC = self._stream(tokens_BT.roll(-ahead, 1))
            if self.activation_checkpointing and torch.is_grad_enabled():
                hidden_BTC = checkpoint(module, hidden_BTC, embedded_BTC, context, use_reentrant=False)
            else:
                hidden_BTC = module(hidden_BTC, embedded_BTC, context)
            targets_BT = further_labels(labels_BT, ahead, context.documents)
            losses.append(self._cross_entropy(hidden_BTC, targets_BT))
            counts.append((targets_BT != fused.IGNORED).sum())
        total = torch.stack(losses).sum()
        self._note("multi_token_loss", total, torch.stack(counts).sum())
        return self.config.multi_token.weight / len(losses) * total

    def _note(self, name: str, total: torch.Tensor, count: torch.Tensor) -> None:
        """Add to a mean of the batch.  In place, so that a CUDA graph goes on adding to the same memory."""
        total = total.detach().float()
        if name not in self._sums or self._sums[name].device != total.device:
            self._sums[name] = torch.zeros(2, device=total.device)
        self._sums[name] += torch.stack((total, count.to(total.dtype)))

    @torch.no_grad()
    def after_batch(self, total: Callable[[torch.Tensor], None] = lambda tensor: None) -> dict[str, torch.Tensor]:
        """To be called once after each batch of training: what layers do then (`blocks.interface.AfterBatch`).

        total: sums a tensor over all devices, in place.  Returns scalars on the device, by name: those of the layers;
        `added_loss`, what was added to the mean loss of the batch; `multi_token_loss`, the mean cross-entropy of the
        modules of `multi_token`, before it is weighted.
        """
        found: dict[str, list[torch.Tensor]] = {}
        for module in (*self.layers.modules(), *self.multi_token.modules()):
            if isinstance(module, AfterBatch):
                for name, number in module.after_batch(total).items():
                    found.setdefault(name, []).append(number)
        numbers = {name: torch.stack(values).mean() for name, values in found.items()}
        for name, sums_2 in self._sums.items():
            total(sums_2)
            numbers[name] = sums_2[0] / sums_2[1].clamp(min=1)
            sums_2.zero_()
        return numbers

    def hidden(
        self, tokens_BT: torch.Tensor, document_starts_BT: torch.Tensor | None = None, *, isolated: bool = False
    ) -> torch.Tensor:
        """Final hidden states [B, T, C], after the last norm: what the head reads.

        isolated: read document_starts_BT, whatever the recipe says of `document_mask`.
        """
        return self._hidden(tokens_BT, self._context(tokens_BT, document_starts_BT, isolated))

    def _context(
        self, tokens_BT: torch.Tensor, document_starts_BT: torch.Tensor | None, isolated: bool = False
    ) -> Context:
        documents = None
        if (isolated or self.config.document_mask) and document_starts_BT is not None:
            documents = Documents.from_starts(document_starts_BT, self.max_documents)
        batch, seq_len = tokens_BT.shape
        return Context.for_tokens(batch, seq_len, device=tokens_BT.device, documents=documents)

    def _stream(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """`embed`, in the dtype that the residual stream has in training."""
        x_BTC = self.embed(tokens_BT)
        return x_BTC.to(fused.compute_dtype(x_BTC)) if self.narrow_stream else x_BTC

    def _hidden(self, tokens_BT: torch.Tensor, context: Context) -> torch.Tensor:
        x_BTC, delta_BTC = self._stream(tokens_BT), None
        for layer in self.layers:
            if self.activation_checkpointing and torch.is_grad_enabled():
                if delta_BTC is not None:  # one tensor to keep, not two
                    x_BTC, delta_BTC = x_BTC + delta_BTC, None
                x_BTC, delta_BTC = checkpoint(layer, x_BTC, delta_BTC, context, use_reentrant=False)
            else:
                x_BTC, delta_BTC = layer(x_BTC, delta_BTC, context)
        return self.norm(x_BTC, delta_BTC)[1]


def build_model(
    recipe: Recipe | ModelConfig | str | os.PathLike | Mapping[str, Any],
    *,
    device: str = "cpu",
    seed: int | None = None,
) -> Decoder:
    """Build and initialise the decoder of a recipe (or of its model section).

    recipe: a Recipe or its model section, or what `load_recipe` takes: a path, a name, a mapping.
    device: where the parameters live; "meta" builds shapes without memory and initialises nothing.
    seed: of the initialisation; default the recipe's `seed`, 0 for a bare model section.
    Raises ZooError if the device does not exist, or if a block has more or fewer parameters than its config counts;
    RecipeError as `load_recipe`.
    """
    if not isinstance(recipe, Recipe | ModelConfig):
        recipe = load_recipe(recipe)
    config = recipe.model if isinstance(recipe, Recipe) else recipe
    if seed is None:
        seed = recipe.seed if isinstance(recipe, Recipe) else 0
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises AssertionError where it is built without CUDA
        raise ZooError(f"cannot build a model on device {device!r}: {str(error).splitlines()[0]}") from error
    if torch.device(device).type == "meta":
        with torch.device("meta"):
            model = Decoder(config)
        _check_counts(model)
        return model
    model = undrawn(config)
    initialise(model, seed)
    return model.to(device)


def undrawn(config: ModelConfig) -> Decoder:
    """The decoder on the CPU before `initialise` draws its weights.  Raises ZooError as `build_model`."""
    with torch.device("cpu"), drawn(False):
        model = Decoder(config)
    _check_counts(model)
    return model


def _check_counts(model: Decoder) -> None:
    """Raise ZooError, naming the block and both numbers, unless every part has the parameters that its config counts.

    `zoo show`, `compare` and `cost` state the counted numbers, so a part that differs would make all of them wrong.
    """
    config, checked = model.config, set()
    layers = [*model.layers, *(module.layer for module in model.multi_token)]
    for layer, built in zip(config.expanded() + config.multi_token_layers(), layers, strict=True):
        if (layer.name, layer.mixer) not in checked:
            counted = layer.mixer.cost(config.max_seq_len).total_parameters
            place = f"model.blocks.{layer.name}: layer {layer.index}"
            _check_count(place, built.attention, counted, f"the cost of {type(layer.config).__name__}")
        if layer.ffn not in checked:
            place = "model.ffn" if config.ffn else f"model.ffns.{layer.ffn_name}: layer {layer.index}"
            counted = layer.feed_forward.parameters(config.d_model)
            _check_count(place, built.feed_forward, counted, f"{type(layer.ffn).__name__}.parameters")
        checked |= {(layer.name, layer.mixer), layer.ffn}
    total, found = model_cost(config, config.max_seq_len).parameters["total"], _n_parameters(model)
    if total != found:
        raise ZooError(f"model: it has {found:,} parameters; zoo show counts {total:,}")


def _check_count(place: str, module: Any, counted: int, by: str) -> None:
    found, name = _n_parameters(module), type(module).__name__
    if counted != found:
        raise ZooError(f"{place} ({name}) has {found:,} parameters; {by} counts {counted:,}; correct the count")


def _n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def initialise(model: Decoder, seed: int, going: Callable[[], bool] = lambda: True) -> None:
    """Draw the weights: every linear map and the embedding from N(0, init_std^2), norms 1, biases 0.

    The two maps of each layer that write to the residual stream (`output` of attention and of the feed-forward) use
    init_std / sqrt(2 n_layers), so that the stream's variance does not grow with depth (GPT-2). A module with a method
    `initialise` draws its own weights, and those inside it; other parameters keep the values that their module gave
    them. Drawn on the CPU in the order of the modules: the same seed gives the same weights on every machine.
    going: asked before each module; once it says no, the rest is left undrawn.
    """
    generator, std = torch.Generator().manual_seed(seed), model.config.init_std
    residual_std = std / math.sqrt(2 * len(model.layers))
    layers = [*model.layers, *(module.layer for module in model.multi_token)]
    parts = [part for layer in layers for part in (layer.attention, layer.feed_forward)]
    residual = {id(getattr(part, "output", None)) for part in parts}
    done: set[int] = set()
    for module in model.modules():
        if not going():
            return
        if id(module) in done:
            continue
        if isinstance(module, SelfInitialised):
            module.initialise(generator, std, residual_std)
            done |= {id(inside) for inside in module.modules()}
        elif isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, residual_std if id(module) in residual else std, generator=generator)
            bias = getattr(module, "bias", None)
            if bias is not None:
                bias.zero_()
