"""The `train:` and `eval:` sections of a recipe. No torch here: `zoo show` and every refusal must answer at once."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from zoo.errors import shorten
from zoo.evaluation.groups import TaskEntry
from zoo.parts import LOGGERS, OPTIMIZERS, SCHEDULES, NameOf, PartOf
from zoo.training.duration import Duration, Interval, Span
from zoo.training.optimizers.adamw_config import AdamW
from zoo.training.optimizers.base import MOST_SETTING, NamePattern, OptimizerConfig, Positive
from zoo.training.schedules import Cosine, ScheduleConfig

Count = Annotated[int, Field(ge=1, strict=True)]


class _CountOr(NamedTuple):
    """A whole number from least (to most), or one word; as one type, so that a wrong value gets one message."""

    word: str
    least: int = 1
    most: int | None = None

    def check(self, value: Any) -> int | str:
        """The value; raises ValueError for any other."""
        word, least, most = self
        if value == word or (type(value) is int and least <= value <= (value if most is None else most)):
            return value
        numbers = f"from {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"must be a whole number {numbers}, or {word}; found {shorten(value)}")

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the type."""
        bounds = {"minimum": self.least} if self.most is None else {"minimum": self.least, "maximum": self.most}
        return {"anyOf": [{"type": "integer", **bounds}, {"const": self.word}]}


_AUTO, _ALL, _WORKERS = _CountOr("auto"), _CountOr("all"), _CountOr("auto", least=0, most=256)
CountOrAuto = Annotated[int | str, PlainValidator(_AUTO.check), WithJsonSchema(_AUTO.schema())]
CountOrAll = Annotated[int | str, PlainValidator(_ALL.check), WithJsonSchema(_ALL.schema())]
Workers = Annotated[int | str, PlainValidator(_WORKERS.check), WithJsonSchema(_WORKERS.schema())]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # validators are made at first use


LoggerName = Annotated[str, NameOf(LOGGERS)]
Optimizer = Annotated[OptimizerConfig, PartOf(OPTIMIZERS)]
Schedule = Annotated[ScheduleConfig, PartOf(SCHEDULES)]


class CheckpointConfig(_Section):
    """When a checkpoint is written, in addition to the one that always marks the end or an interruption."""

    every: Interval = Field("0.1dur", description="Interval between checkpoints; dur is a share of the duration.")
    keep: CountOrAll = Field(2, description="How many of the newest checkpoints are kept.")


class StopAtConfig(_Section):
    """When a training ends before its duration."""

    accuracy: Annotated[float, Field(gt=0, le=1)] = Field(
        description="Share of the validation answers that are right: data source `synthetic` only."
    )


class TrainConfig(_Section):
    """How a model is trained."""

    duration: Duration = Field("1ep", description="Length of the training: 2000ba, 15Btok, 15_000_000_000tok, 1.5ep.")
    batch_size: Count | None = Field(
        None, description="Rows of one optimiser step, over all devices. Give this or batch_tokens; 32 if neither."
    )
    batch_tokens: Count | None = Field(None, description="Tokens of one optimiser step; a multiple of data.seq_len.")
    stop_at: StopAtConfig | None = Field(
        None,
        description="End at a validation that reaches this, e.g. {accuracy: 0.99}; otherwise at the duration.",
    )
    micro_batch: CountOrAuto = Field(
        "auto",
        description="Rows of one forward and backward pass on one device. auto: on a GPU the most that fits (found "
        "while training), on a CPU the device's whole share of the batch.",
    )
    init_from: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        None,
        description="A run folder whose weights this run starts from, relative to the working directory: the final "
        "weights of a complete run, else those of its newest checkpoint. Default: weights drawn from `seed`.",
    )
    freeze: list[NamePattern] = Field(
        [],
        description="Parameters that stay as they are, by name or pattern: [embedding, layers.0, '*norm*']. They have "
        "no gradient and no optimiser state.",
    )
    optimizer: Optimizer = Field(AdamW(), description="The optimiser and its settings.")
    schedule: Schedule = Field(Cosine(), description="The learning rate over time.")
    clip_norm: Positive | None = Field(1.0, description="Gradients are scaled down to this norm; null: never.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="bf16 is mixed precision (float32 weights). auto: bf16 on a CUDA GPU, fp32 on a CPU. With fp32 "
        "on a CUDA GPU, linear maps multiply in TF32.",
    )
    residual_stream: Literal["fp32", "bf16"] = Field(
        "bf16",
        description="Data type of the residual stream and of its gradient in bf16 precision. fp32: sums of layers are "
        "not rounded; about 3% slower.",
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute each layer's activations in the backward pass: less memory, about a third slower."
    )
    kernels: Literal["auto", "reference"] = Field(
        "auto", description="reference: plain PyTorch everywhere. auto: Triton kernels where they support the call."
    )
    cuda_graph: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Capture forward and backward of a micro-batch as a CUDA graph and replay it: small models then no "
        "longer wait for Python. auto: where that is possible (log.txt says why not); on: fail where it is not; off: "
        "Composer's own step, which waits for the GPU in every batch, on several GPUs too.",
    )
    parallelism: Literal["ddp", "fsdp2"] = Field(
        "ddp",
        description="With several processes: ddp copies the model to each, fsdp2 shards weights, gradients and "
        "optimiser state over them. One process needs neither.",
    )
    reshard_after_forward: bool = Field(
        True,
        description="With fsdp2: a layer's weights are gathered for its forward pass, freed, and gathered again for "
        "its backward pass (ZeRO-3). false keeps them until then: less communication, and memory for all weights in "
        "the precision of the products, 2 bytes a parameter in bf16 (ZeRO-2). They then stay for all micro-batches of "
        "a batch.",
    )
    gradient_sync: Literal["micro_batch", "batch"] = Field(
        "micro_batch",
        description="With fsdp2: whether gradients are summed over the devices after every micro-batch or once a "
        "batch. batch: less communication, and each device keeps the gradients of all weights between micro-batches, "
        "4 bytes a parameter. ddp sums once a batch.",
    )
    workers: Workers = Field(
        "auto",
        description="Processes that read rows, for each device; 0 reads in the training process. auto: 4 for one GPU, "
        "fewer on few cores, otherwise 1. The rows and their order do not depend on it.",
    )
    stall_minutes: Annotated[float, Field(ge=0, le=MOST_SETTING, allow_inf_nan=False)] = Field(
        30.0, description="A run that makes no progress for this long writes its stacks to log.txt and ends; 0: never."
    )
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="Checkpoint interval and retention.")
    loggers: list[LoggerName] = Field(
        [], description="Further loggers. metrics.jsonl and TensorBoard events are always written."
    )

    @model_validator(mode="after")
    def _one_batch_size(self):
        if self.batch_size is not None and self.batch_tokens is not None:
            raise ValueError("give batch_size or batch_tokens, not both (null takes back an inherited one)")
        return self

    @model_validator(mode="after")
    def _exchanges_shards_where_there_are_some(self):
        if not self.reshard_after_forward and self.parallelism != "fsdp2":
            raise ValueError("reshard_after_forward: false needs parallelism: fsdp2; ddp shards no weights")
        if self.gradient_sync == "batch" and self.parallelism != "fsdp2":
            raise ValueError("gradient_sync: batch needs parallelism: fsdp2; ddp always sums gradients once a batch")
        return self

    def rows(self, seq_len: int) -> int:
        """Rows of one optimiser step. Raises ValueError if batch_tokens is not a whole number of rows."""
        if self.batch_tokens is None:
            return self.batch_size or 32
        if self.batch_tokens % seq_len:
            below = self.batch_tokens // seq_len * seq_len
            near = f"{below or seq_len} or {below + seq_len}" if below else str(seq_len)
            raise ValueError(f"must be a multiple of data.seq_len ({seq_len}), e.g. {near}; found {self.batch_tokens}")
        return self.batch_tokens // seq_len

    def schedule_batches(self, tokens_per_batch: int, batches_per_epoch: int) -> tuple[int, int, int]:
        """Batches of the whole training, of its warm-up and of its decay. Raises ValueError if these do not fit."""
        total = Span.parse(self.duration).batches(tokens_per_batch, batches_per_epoch)
        warmup = Span.parse(self.schedule.warmup).batches(tokens_per_batch, batches_per_epoch, total)
        decay, said = max(0, total - warmup), ""
        if self.schedule.decay_span is not None:
            decay = Span.parse(self.schedule.decay_span).batches(tokens_per_batch, batches_per_epoch, total)
            said = f" and {decay} of decay"
        if warmup + decay > total:
            found = f"{warmup} batches of warm-up{said}"
            raise ValueError(f"must fit into the duration of {total} batches; found {found}")
        return total, warmup, decay

    def schedule_problem(self, seq_len: int) -> str | None:
        """Why warm-up and decay do not fit into the duration, if that is known before the data: without epochs."""
        spans = self.duration, self.schedule.warmup, self.schedule.decay_span
        if any(span is not None and Span.parse(span).unit == "ep" for span in spans):
            return None
        try:
            self.schedule_batches(self.rows(seq_len) * seq_len, batches_per_epoch=0)
        except ValueError as error:
            return str(error)
        return None

    def problems(self, seq_len: int) -> list[tuple[tuple[str, ...], str]]:
        """Cross-field checks that need the sequence length, as (key path inside `train`, message)."""
        try:
            self.rows(seq_len)
        except ValueError as error:
            return [(("batch_tokens",), str(error))]
        return []


class EvalConfig(_Section):
    """How often, and on how much held-out text, validation loss and bits per byte are measured."""

    every: Interval = Field(
        "0.1dur", description="Interval between validations; there is always one before the first batch and at the end."
    )
    batches: CountOrAll = Field(
        64, description="Validation batches (of the training batch size) each time; all: the whole validation split."
    )
    tasks: list[TaskEntry] = Field(
        [],
        description="Evaluation tasks to score at each interval and at the end: names, groups, and mappings such as "
        "{task: niah_single_1, lengths: [1024]}; `zoo eval --list` names them, `zoo parts tasks NAME` the fields.",
    )
