"""What a training step needs of a GPU, before one is rented: memory by part, and bounds of its time. No torch.

Counted for what `zoo train` does on CUDA: float32 weights, gradients and AdamW averages; bf16 autocast; kernels that
keep the log-sum-exp and no scores; a fused loss that never holds the logits. Activations are the tensors that autograd
keeps between forward and backward: each part states its own (`activation_bytes`), `_layer_bytes` the rest of a layer.
"""

from collections import Counter
from dataclasses import dataclass

from zoo.blocks.cost import BF16, FLOAT
from zoo.counting.model_cost import model_cost
from zoo.feed_forward.base import FeedForwardConfig
from zoo.recipe import ModelConfig, Recipe
from zoo.recipe.layer_fields import norm_bytes, norm_bytes_of_one
from zoo.recipe.multi_token import depth
from zoo.training.names import frozen_parameters

GIB = 2**30
USABLE = 0.92  # share of a GPU's memory that tensors can fill; the rest: CUDA's context, gaps between tensors


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet: dense bf16 FLOP/s, bytes of memory as the driver shows them, bytes/s of it."""

    name: str
    peak_flops: float
    memory_bytes: float
    bytes_per_s: float


GPUS = {
    "h200": Gpu("NVIDIA H200", 989e12, 139.8 * GIB, 4.8e12),
    "h100": Gpu("NVIDIA H100 SXM", 989e12, 79.2 * GIB, 3.35e12),
    "a100": Gpu("NVIDIA A100 80GB SXM", 312e12, 79.2 * GIB, 2.04e12),
}


@dataclass(frozen=True)
class StepSize:
    """Memory and time of one micro-batch's forward and backward and the optimiser's step.

    Bytes by part; `activations` with what the recipe asks (checkpointing or not), `activations_other` the other way.
    `peak` is the larger of two moments: the start of the backward, when all activations are held, and the optimiser's
    step, when all gradients are.  compute_s, memory_s: the least time of a step by arithmetic and by memory traffic.
    unknown: kinds of other packages, whose activations are not counted.  frozen: parameters that are not trained.
    """

    tokens: int
    weights: int
    copies: int
    gradients: int
    optimiser: int
    activations: int
    activations_other: int
    loss: int
    peak: int
    compute_s: float
    memory_s: float
    checkpointing: bool
    accumulates: bool
    unknown: tuple[str, ...]
    frozen: int = 0

    @property
    def least_s(self) -> float:
        """No step is faster: the slower of arithmetic and memory traffic, perfectly overlapped."""
        return max(self.compute_s, self.memory_s)

    def fits(self, gpu: Gpu) -> bool:
        """Whether the peak leaves the share of memory that is not for tensors."""
        return self.peak <= USABLE * gpu.memory_bytes


def step_size(recipe: Recipe, seq_len: int, rows: int, gpu: Gpu, checkpointing: bool | None = None) -> StepSize:
    """Size a training step of `rows` rows of seq_len tokens on one GPU.

    checkpointing: default what the recipe says.  Gradients are held during the backward if the recipe's batch has more
    rows than that: they accumulate over micro-batches.
    """
    model = recipe.model
    checkpointing = recipe.train.activation_checkpointing if checkpointing is None else checkpointing
    cost, tokens = model_cost(model, seq_len), rows * seq_len
    parameters = cost.parameters["total"]
    trained = parameters - frozen_parameters(recipe)
    head = model.vocab_size * model.d_model
    linear = parameters - cost.parameters["norms"] - (0 if model.tie_embeddings else head)
    layers, unknown = _layers(model, seq_len)
    kept = rows * sum(times * size for size, times in layers)
    stream = BF16 if recipe.train.residual_stream == "bf16" else FLOAT
    inputs = tokens * stream * model.d_model * sum(times for _, times in layers)
    again = inputs + rows * max(size for size, _ in layers)
    activations, other = (again, kept) if checkpointing else (kept, again)
    # What the last norm keeps, and the gradients of its result, of the stream, of the last layer's output, of the head.
    scaled = 0 if model.logit_scale == 1 else FLOAT * head  # the head times logit_scale
    loss = (1 + depth(model)) * (tokens * model.d_model * (3 * BF16 + stream) + FLOAT * head + scaled)
    weights, copies = FLOAT * parameters, BF16 * linear
    accumulates = recipe.train.rows(seq_len) > rows if _even(recipe, seq_len) else True
    state = recipe.train.optimizer.state_bytes(trained)
    standing = weights + state + copies
    backward = standing + activations + loss + (FLOAT * trained if accumulates else 0)
    # Gradients of frozen weights are not computed; those of activations may be needed in any layer.
    forwards = (3 if checkpointing else 2) + trained / parameters
    traffic = trained * 2 * FLOAT + parameters * 4 * BF16
    traffic += recipe.train.optimizer.step_traffic(trained) + 2 * activations
    return StepSize(
        tokens=tokens,
        weights=weights,
        copies=copies,
        gradients=FLOAT * trained,
        optimiser=state,
        activations=activations,
        activations_other=other,
        loss=loss,
        peak=max(backward, weights + state + FLOAT * trained),
        compute_s=forwards * cost.flops_per_token * tokens / gpu.peak_flops,
        memory_s=traffic / gpu.bytes_per_s,
        checkpointing=checkpointing,
        accumulates=accumulates,
        unknown=unknown,
        frozen=parameters - trained,
    )


def _even(recipe: Recipe, seq_len: int) -> bool:
    return not recipe.train.problems(seq_len)


def _layers(model: ModelConfig, seq_len: int) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
    """((bytes of one layer on one row, how many such layers) ..., kinds whose attention is not counted)."""
    every = model.expanded() + model.multi_token_layers()
    counts = Counter((layer.kind, layer.mixer, layer.feed_forward) for layer in every)
    # Of each module of `multi_token`, apart from its layer: what two norms keep, and the input of the map after them.
    layers = [(seq_len * (2 * norm_bytes_of_one(model) + 2 * BF16 * model.d_model), depth(model))]
    unknown: dict[str, None] = {}
    for (kind, mixer, ffn), times in counts.items():
        attention = mixer.activation_bytes(seq_len)
        if attention is None:
            unknown[kind] = None
        layers.append((_layer_bytes(model, ffn, seq_len) + (attention or 0), times))
    return layers, tuple(unknown)


def _layer_bytes(model: ModelConfig, ffn: FeedForwardConfig, seq_len: int) -> int:
    """What a layer keeps apart from its attention: what its norms keep, and its feed-forward.

    Parallel parts share their input, which both count.
    """
    shared = BF16 * model.d_model if model.parallel else 0
    return seq_len * (norm_bytes(model) - shared + ffn.activation_bytes(model.d_model))
