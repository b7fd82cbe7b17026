"""What a model costs, counted from its recipe alone: parameters, forward FLOPs, cache bytes. No torch.

A multiplication and an addition are two FLOPs. Training costs three times the forward: the backward makes two products
for each of the forward's (Kaplan 2020, arXiv 2001.08361, section 2.1); recomputed activations are not counted.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from zoo.blocks.config import BlockConfig
from zoo.blocks.cost import Cost
from zoo.recipe import ModelConfig
from zoo.recipe.layer_fields import norm_parameters
from zoo.recipe.multi_token import NORMS

BYTES_PER_ELEMENT = 2  # caches are counted in bf16


@dataclass(frozen=True)
class ModelCost:
    """The cost of a model on one row of `seq_len` tokens.

    parameters: by part and in `total`; a tied head counts in `embedding` alone.  active_parameters: of them, those that
    a generated token uses; fewer than the total where feed-forwards choose among experts, or with `multi_token`, whose
    modules run in training only.
    flops_by_part: forward FLOPs of one token in training, averaged over the row (attention grows along it).
    cache_nominal_bytes, cache_held_bytes: of the whole row, bf16. Nominal counts keys and values (or latent and rotary
    key) of every layer at every token, or its state, as papers do; held what the cache tensors occupy, with ring
    buffers and pooled entries.
    """

    seq_len: int
    parameters: dict[str, int]
    active_parameters: int
    flops_by_part: dict[str, float]
    cache_nominal_bytes: int
    cache_held_bytes: int

    @property
    def nominal_bytes_per_token(self) -> float:
        """Nominal cache bytes of a token, averaged over the row: a state of fixed size is shared by all tokens."""
        return self.cache_nominal_bytes / self.seq_len

    @property
    def flops_per_token(self) -> float:
        """Forward FLOPs of one token, averaged over the row."""
        return sum(self.flops_by_part.values())


def model_cost(model: ModelConfig, seq_len: int) -> ModelCost:
    """Count the model of a recipe on one row of seq_len tokens.  Raises ValueError if seq_len is below 1."""
    layers = list(layer_costs(model, seq_len))
    n_layers = sum(times for _, times, _ in layers)
    further, further_flops = _multi_token(model, seq_len)
    embedding = model.vocab_size * model.d_model
    ffns = [layer.feed_forward for layer in model.expanded()]
    ffn = sum(each.parameters(model.d_model) for each in ffns)
    active = sum(each.active_parameters(model.d_model) for each in ffns)
    parameters = {
        "embedding": embedding,
        "attention": sum(times * cost.total_parameters for _, times, cost in layers),
        "ffn": ffn,
        "norms": norm_parameters(model, n_layers),
        "head": 0 if model.tie_embeddings else embedding,
        **({"multi_token": further} if model.multi_token else {}),
    }
    flops = {
        "attention": sum(times * cost.total_flops for _, times, cost in layers) / seq_len,
        "ffn": sum(each.flops(model.d_model) for each in ffns),
        "head": 2.0 * embedding,
        **({"multi_token": further_flops} if model.multi_token else {}),
    }
    total = sum(parameters.values())
    return ModelCost(
        seq_len,
        {**parameters, "total": total},
        total - further - ffn + active,
        flops,
        BYTES_PER_ELEMENT * sum(times * cost.cache_nominal_elements for _, times, cost in layers),
        sum(times * cost.cache_held_bytes(BYTES_PER_ELEMENT) for _, times, cost in layers),
    )


def _multi_token(model: ModelConfig, seq_len: int) -> tuple[int, float]:
    """Parameters of all modules of `multi_token`, and forward FLOPs of one token in them and in the head for each."""
    width, parameters, flops = model.d_model, 0, 0.0
    norms = norm_parameters(model, 1) + (NORMS - 1) * norm_parameters(model, 0)
    for layer in model.multi_token_layers():
        cost, ffn = layer.mixer.cost(seq_len), layer.feed_forward
        parameters += 2 * width**2 + cost.total_parameters + ffn.parameters(width) + norms
        flops += 4.0 * width**2 + cost.total_flops / seq_len + ffn.flops(width) + 2.0 * model.vocab_size * width
    return parameters, flops


def layer_costs(model: ModelConfig, seq_len: int) -> Iterator[tuple[BlockConfig, int, Cost]]:
    """(config, how many layers use it, cost of one) for each distinct attention layer, in order of first use."""
    counts = Counter((layer.config, layer.mixer) for layer in model.expanded())
    for (config, mixer), times in counts.items():
        yield config, times, mixer.cost(seq_len)
