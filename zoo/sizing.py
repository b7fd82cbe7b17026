"""What a training step needs of a GPU, before one is rented: memory by part, and bounds of its time. No torch.

Counted for what `zoo train` does on CUDA: float32 weights, gradients and AdamW averages; bf16 autocast; kernels that
keep the log-sum-exp and no scores; a fused loss that never holds the logits. Activations are the tensors that autograd
keeps between forward and backward, listed in `attention_bytes` and `_layer_bytes`.
"""

from collections import Counter
from dataclasses import dataclass
from math import prod

from zoo.blocks.config import AttentionConfig, BlockConfig
from zoo.blocks.cost import n_slots
from zoo.cost import model_cost
from zoo.recipe import ModelConfig, Recipe

FLOAT, BF16 = 4, 2  # bytes of an element
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
    unknown: kinds of other packages, whose activations are not counted.
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
    head = model.vocab_size * model.d_model
    linear = parameters - cost.parameters["norms"] - (0 if model.tie_embeddings else head)
    layers, unknown = _layers(model, seq_len)
    kept = rows * sum(times * size for size, times in layers)
    inputs = tokens * FLOAT * model.d_model * sum(times for _, times in layers)
    again = inputs + rows * max(size for size, _ in layers)
    activations, other = (again, kept) if checkpointing else (kept, again)
    loss = tokens * model.d_model * (FLOAT + 2 * BF16) + FLOAT * head  # last norm, its cast, both gradients
    weights, copies = FLOAT * parameters, BF16 * linear
    accumulates = recipe.train.rows(seq_len) > rows if _even(recipe, seq_len) else True
    standing = weights + 2 * FLOAT * parameters + copies
    backward = standing + activations + loss + (FLOAT * parameters if accumulates else 0)
    forwards = 4 if checkpointing else 3
    traffic = parameters * (2 * FLOAT + 4 * BF16 + 7 * FLOAT) + 2 * activations
    return StepSize(
        tokens=tokens,
        weights=weights,
        copies=copies,
        gradients=FLOAT * parameters,
        optimiser=2 * FLOAT * parameters,
        activations=activations,
        activations_other=other,
        loss=loss,
        peak=max(backward, weights + 3 * FLOAT * parameters),
        compute_s=forwards * cost.flops_per_token * tokens / gpu.peak_flops,
        memory_s=traffic / gpu.bytes_per_s,
        checkpointing=checkpointing,
        accumulates=accumulates,
        unknown=unknown,
    )


def _even(recipe: Recipe, seq_len: int) -> bool:
    return not recipe.train.problems(seq_len)


def _layers(model: ModelConfig, seq_len: int) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
    """((bytes of one layer on one row, how many such layers) ..., kinds whose attention is not counted)."""
    counts = Counter((layer.config, layer.part) for layer in model.expanded())
    layers, unknown = [], {}
    for (config, part), times in counts.items():
        attention = 0
        if type(config).grid_point is BlockConfig.grid_point:
            unknown[config.kind] = None
        else:
            attention = attention_bytes(config.grid_point(model.d_model, part), model.d_model, seq_len)
        layers.append((_layer_bytes(model, seq_len) + attention, times))
    return layers, tuple(unknown)


def _layer_bytes(model: ModelConfig, seq_len: int) -> int:
    """What a layer keeps beside its attention: the residual stream before both norms (float32), the casts that its
    feed-forward maps read, and the hidden values."""
    maps, hidden = (2, 3) if model.ffn.kind == "swiglu" else (1, 2)
    return seq_len * (2 * FLOAT * model.d_model + BF16 * (maps * model.d_model + hidden * model.ffn.d_ff))


def attention_bytes(point: AttentionConfig, d_model: int, seq_len: int) -> int:
    """What one attention layer keeps for its backward on one row of seq_len tokens, in bytes.

    point: a grid point with its defaults worked out.  The input of each map is cast to bf16 for that map alone.
    """
    projection, heads = point.projection, point.projection.n_heads
    n_patterns = len(point.patterns)
    latent = projection.kind != "gqa"
    maps = 1 + (n_patterns > 1)  # that of the projection, and the gate
    per_token = BF16 * d_model * maps
    if latent and projection.q_rank:  # the query latent before its norm and after
        per_token += projection.q_rank * 2 * BF16
    per_token += _query_and_key_bytes(point)
    per_token += n_patterns * heads * (BF16 * projection.v_head_dim + FLOAT)  # each pattern's output and log-sum-exp
    if n_patterns > 1:  # the gates, and the sum that the output map reads
        per_token += BF16 * heads * (n_patterns + projection.v_head_dim)
    if selection := point.pattern("selection"):  # int32, one choice a group of queries and key head
        per_token += 4 * projection.n_kv_heads * selection.n_selected / selection.query_group
    return int(seq_len * per_token) + _pooled_bytes(point, seq_len)


def _query_and_key_bytes(point: AttentionConfig) -> int:
    """Rotated queries, keys and values of one token, and what making them keeps."""
    projection = point.projection
    queries = BF16 * projection.n_heads * projection.qk_dim
    if projection.kind == "gqa":
        keys = BF16 * projection.n_kv_heads * (projection.head_dim + projection.v_head_dim) * point.n_kv_sets
        normed = projection.n_heads + projection.n_kv_heads * point.n_kv_sets
        return queries + keys + (BF16 * projection.head_dim * normed if projection.qk_norm else 0)
    keys = BF16 * (projection.n_kv_heads * (projection.head_dim + projection.v_head_dim) + projection.rope_dim)
    if point.pattern("full"):  # one product over both parts: the rotary key is copied to every key head
        keys += BF16 * (projection.n_kv_heads - 1) * projection.rope_dim
    return queries + keys + projection.kv_rank * 2 * BF16  # the latent before its norm and after


def _pooled_bytes(point: AttentionConfig, seq_len: int) -> int:
    """Pooled entries, and the keys and values made of them; with an MLP also the gathered blocks it reads."""
    compression, projection = point.pattern("compression"), point.projection
    if compression is None:
        return 0
    entries = projection.entries()
    pooled = sum(prod(shape) for shape in entries.values())
    if projection.kind != "gqa":
        pooled += projection.n_kv_heads * (projection.head_dim + projection.v_head_dim)
    if compression.pooling == "mlp":
        pooled += (compression.compression_block + 3) * sum(prod(shape) for shape in entries.values())
    return BF16 * n_slots(seq_len, compression.compression_stride) * pooled
