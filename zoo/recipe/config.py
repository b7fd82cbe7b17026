"""The sections of a recipe, checked and expanded into one block config a layer. No torch."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from zoo.blocks import plugins, registry
from zoo.blocks.config import BlockConfig
from zoo.blocks.resolved import ResolvedMixer
from zoo.data.config import DataConfig
from zoo.errors import shorten
from zoo.feed_forward.base import FeedForwardConfig
from zoo.parts import FEED_FORWARDS, PartOf
from zoo.recipe import own_parts, schedule
from zoo.recipe.checking import Found
from zoo.recipe.layer_fields import (
    EmbeddingScale,
    LogitScale,
    LogitSoftcap,
    Norm,
    NormBias,
    NormPlace,
    Parallel,
    ResidualScale,
    StreamScale,
    around_problems,
)
from zoo.recipe.multi_token import MultiToken, multi_token_problems
from zoo.recipe.plain import plain
from zoo.recipe.schedule import Schedule, ScheduleError, Use, Where
from zoo.recipe.schedule_checks import Scheduled, ffn_problems, model_problems
from zoo.recipe.yaml_reader import scalar
from zoo.training.config import EvalConfig, TrainConfig


def _refusal(lines: Iterable[Found], value: Any) -> ValidationError:
    """Problems found by a check of ours as one pydantic error, so that they join those of other fields."""
    details = []
    for path, at, message in lines:
        context = {"message": message, "where": at}
        custom = PydanticCustomError("schedule" if isinstance(at, Where) else "cross", "{message}", context)
        details.append(InitErrorDetails(type=custom, loc=path, input=value))
    return ValidationError.from_exception_data("recipe", details)


def read_block(value: Any) -> BlockConfig:
    """Make the config of the kind that the mapping names; kinds come from the registry when a recipe is read."""
    if isinstance(value, BlockConfig):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping with a kind; found {shorten(value)}")
    kind = value.get("kind")
    if not isinstance(kind, str):
        why = f"must be the name of a block kind; found {shorten(kind)}" if "kind" in value else "is required"
        raise _refusal([(("kind",), "value", f"{why}; known: {', '.join(registry.kinds())}")], value)
    try:
        config = registry.config_class(kind)
    except ValueError as error:
        raise _refusal([(("kind",), "value", str(error))], value) from error
    # Through JSON: there strict checks take lists where a field is a tuple, and still refuse "8" and true as numbers.
    return config.model_validate_json(json.dumps(value), strict=True)


def read_ffn(value: Any) -> FeedForwardConfig:
    """Make the config of a feed-forward, as strictly as from JSON."""
    return FEED_FORWARDS.read(value, as_json=True)


def read_schedule(value: Any) -> Schedule:
    """Parse a schedule of layers.  Raises a validation error with every place that is wrong."""
    if isinstance(value, Schedule):
        return value
    try:
        return schedule.parse(value)
    except ScheduleError as error:
        raise _refusal([((), where, why) for where, why in error.found], value) from error


Block = Annotated[SerializeAsAny[BlockConfig], PlainValidator(read_block, json_schema_input_type=dict[str, Any])]
Layers = Annotated[
    Schedule,
    PlainValidator(read_schedule, json_schema_input_type=str | list[Any]),
    PlainSerializer(schedule.format_schedule, return_type=str | list[Any]),
]


def _load_plugin(name: str, info: ValidationInfo) -> str:
    """Import a plugin: any that the user's own recipe names, of a run folder only what `load_plugin_of_run` allows."""
    (plugins.load_plugin_of_run if (info.context or {}).get("of_run") else plugins.load_plugin)(name)
    return name


Plugin = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=200), AfterValidator(_load_plugin)]
BlockName = Annotated[str, Field(pattern=f"^{schedule.NAME.pattern}$", max_length=100)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Section(BaseModel):
    """Base of the recipe's own sections: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # validators are made at first use


FeedForward = Annotated[FeedForwardConfig, PartOf(FEED_FORWARDS)]


@dataclass(frozen=True)
class LayerConfig:
    """One layer of the expanded schedule. `name` is the key in `blocks`, `block` the name with its part.

    `ffn_name` is the key in `ffns`, `ffn` where one feed-forward is for all.
    d_model, seq_len: what its parts are resolved for: the model's width and its max_seq_len.
    n_layers: of the model.
    kv_layer: the index of the layer that makes the keys and values where several share them (`share_kv`); else None.
    """

    index: int
    name: str
    part: str | None
    config: BlockConfig
    ffn_name: str
    ffn: FeedForwardConfig
    d_model: int
    seq_len: int
    n_layers: int
    kv_layer: int | None
    _mixers: dict[tuple[BlockConfig, str | None, bool], ResolvedMixer] = field(repr=False, compare=False)

    @property
    def mixer(self) -> ResolvedMixer:
        """The block with every number known, made at first use; layers with the same block share it."""
        key = self.config, self.part, self.follows
        if key not in self._mixers:
            mixer = self.config.resolve(self.d_model, self.seq_len, self.part)
            self._mixers[key] = mixer.following() if self.follows else mixer
        return self._mixers[key]

    @property
    def follows(self) -> bool:
        """Whether it reads the keys and values of an earlier layer."""
        return self.kv_layer not in (None, self.index)

    @property
    def feed_forward(self) -> FeedForwardConfig:
        """The feed-forward with every number known."""
        return self.ffn.resolve(self.d_model, self.seq_len)

    @property
    def block(self) -> str:
        return f"{self.name}.{self.part}" if self.part else self.name

    @property
    def kind(self) -> str:
        return self.config.kind


class ModelConfig(Section):
    """The architecture: a decoder whose layers take their attention blocks from a schedule."""

    d_model: Count = Field(description="Width of the residual stream.")
    n_layers: int | None = Field(
        None,
        ge=1,
        le=schedule.MAX_LAYERS,
        description="Number of layers; must agree with `layers`, required if that has '...'.",
    )
    vocab_size: Annotated[int, Field(ge=2, le=2**31 - 1)] = Field(description="Size of the vocabulary.")
    max_seq_len: Count = Field(description="Longest sequence the model is made for, in tokens.")
    ffn: FeedForward | None = Field(None, description="The feed-forward network of every layer.")
    ffns: dict[BlockName, FeedForward] | None = Field(
        None, min_length=1, description="In place of `ffn`: feed-forwards by the name that `ffn_layers` uses."
    )
    ffn_layers: Layers | None = Field(
        None, description="The schedule of feed-forwards, in the grammar of `layers`, e.g. `dense*3 moe ...`."
    )
    tie_embeddings: bool = Field(True, description="The output head uses the embedding's matrix.")
    norm: Norm = "rms"
    norm_eps: float = Field(1e-5, gt=0, lt=1, description="Epsilon of the layers' norms.")
    norm_bias: NormBias = False
    norm_place: NormPlace = "before"
    parallel: Parallel = False
    residual_scale: ResidualScale = 1.0
    stream_scale: StreamScale = 1.0
    embedding_scale: EmbeddingScale = 1.0
    logit_scale: LogitScale = 1.0
    logit_softcap: LogitSoftcap = None
    multi_token: MultiToken | None = Field(
        None, description="Modules that predict the tokens after the next one, in training only. Default: none."
    )
    init_std: float = Field(0.02, gt=0, le=1, description="Standard deviation of initial weights.")
    document_mask: bool = Field(False, description="Attention stays inside each document of a packed row.")
    blocks: dict[BlockName, Block] = Field(min_length=1, description="Attention blocks by the name the schedule uses.")
    layers: Layers = Field(
        description="The schedule: which block each layer uses, e.g. `(local*3 global)*6`, or a list of names."
    )

    @model_validator(mode="after")
    def _agrees(self) -> "ModelConfig":
        both = sections(self.blocks, self.layers, self.ffns, self.ffn_layers)
        lines = list(model_problems(*both, self.n_layers, self.d_model, self.ffn))
        lines += [(path, "value", why) for path, why in around_problems(self.norm, self.norm_bias)]
        lines += ffn_problems(self.ffn is not None, self.ffns is not None, self.ffn_layers is not None)
        named = set(self.blocks), set(self.ffns or ())
        lines += [(path, "value", why) for path, why in multi_token_problems(self.multi_token, self.blocks, *named)]
        lines = lines or [(path, "value", why) for path, why in own_parts.failures(self.expanded())]
        if lines:
            raise _refusal(lines, self)
        return self

    def expanded(self) -> list[LayerConfig]:
        """The block of each layer, counted from 0, with the overrides of `with` applied.

        A bare name of a block with parts alternates between them, by its own occurrences.
        """
        turns: dict[str, int] = {}
        made: dict[int, Any] = {}
        mixers: dict[tuple[BlockConfig, str | None, bool], ResolvedMixer] = {}
        sharing: dict[tuple[str, BlockConfig, str | None], list[int]] = {}
        layers = []
        uses = schedule.expand(self.layers, self.n_layers)
        for index, (use, ffn_use) in enumerate(zip(uses, self._ffn_uses(len(uses)), strict=True)):
            config = _of_use(use, self.blocks[use.name], read_block, made)
            part = use.part
            if part is None and config.parts:
                turn = turns.get(use.name, 0)
                part, turns[use.name] = config.alternation[turn % len(config.alternation)], turn + 1
            ffn_name, ffn = "ffn", self.ffn
            if ffn_use is not None and self.ffns is not None:
                ffn_name, ffn = ffn_use.name, _of_use(ffn_use, self.ffns[ffn_use.name], read_ffn, made)
            assert ffn is not None  # either is there: ffn_problems
            kv_layer = _kv_layer(index, config, sharing.setdefault((use.name, config, part), []))
            sizes = self.d_model, self.max_seq_len, len(uses)
            layers.append(LayerConfig(index, use.name, part, config, ffn_name, ffn, *sizes, kv_layer, mixers))
        return layers

    def multi_token_layers(self) -> list[LayerConfig]:
        """The layer of each module of `multi_token`, numbered after the model's own."""
        if self.multi_token is None:
            return []
        layer, use, ffn = self.expanded()[-1], self.multi_token.use, self.multi_token.ffn
        first = layer.index + 1
        if use is not None:
            layer = replace(layer, name=use.name, part=use.part, config=self.blocks[use.name])
        if ffn is not None and self.ffns is not None:
            layer = replace(layer, ffn_name=ffn, ffn=self.ffns[ffn])
        return [replace(layer, index=first + k, kv_layer=None) for k in range(self.multi_token.depth)]

    def _ffn_uses(self, n_layers: int) -> list[Use] | list[None]:
        """The entry of `ffn_layers` for each layer; None where `ffn` is for all."""
        return [None] * n_layers if self.ffn_layers is None else schedule.expand(self.ffn_layers, n_layers)

    @property
    def unused(self) -> dict[str, list[str]]:
        """Blocks and feed-forwards that are defined and not in the schedule, by key: allowed, so that
        `--set model.layers=...` can be tried."""
        layers = self.expanded() + self.multi_token_layers()
        blocks, ffns = {layer.name for layer in layers}, {layer.ffn_name for layer in layers}
        found = {
            "blocks": [name for name in self.blocks if name not in blocks],
            "ffns": [name for name in self.ffns or () if name not in ffns],
        }
        return {key: names for key, names in found.items() if names}


def _kv_layer(index: int, config: BlockConfig, group: list[int]) -> int | None:
    """The layer whose keys and values layer `index` reads.  group: the layers of the block since the last that made
    them, to which this one is added."""
    most = getattr(config, "share_kv", 1)
    if most == 1:
        return None
    if len(group) == most:
        group.clear()
    group.append(index)
    return group[0]


def _of_use(use: Use, base: Any, read: Callable[[Any], Any], made: dict[int, Any]) -> Any:
    """The config of one occurrence, its `with` applied; made: those of occurrences seen before."""
    if id(use) not in made:
        made[id(use)] = read({**plain(base), **use.overrides}) if use.overrides else base
    return made[id(use)]


def sections(
    blocks: Mapping[str, BlockConfig],
    layers: Schedule | None,
    ffns: Mapping[str, FeedForwardConfig] | None,
    ffn_layers: Schedule | None,
    names: set[str] | None = None,
    ffn_names: set[str] | None = None,
) -> tuple[Scheduled, Scheduled]:
    """names, ffn_names: all that are defined; default those given."""
    ffns = ffns or {}
    names, ffn_names = names or set(blocks), ffn_names or set(ffns)
    return (
        Scheduled("layers", "blocks", "block", blocks, names, layers, read_block),
        Scheduled("ffn_layers", "ffns", "feed-forward", ffns, ffn_names, ffn_layers, read_ffn),
    )


class Recipe(Section):
    """A whole experiment: the model, its data, its training, its evaluation."""

    name: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = Field(
        description="Name of the recipe, and of its run folder: letters, digits, '.', '_' and '-'."
    )
    summary: str = Field("", description="One line on what the recipe is for.")
    seed: int = Field(17, ge=0, le=2**32 - 1, description="Seed of initialisation, data order and dropout.")
    plugins: list[Plugin] = Field(
        [],
        description="Modules that define more block kinds; reading the recipe imports them. Those of a run "
        "folder are imported only if they are installed or named with --plugin.",
    )
    model: ModelConfig = Field(description="The architecture.")
    data: DataConfig = Field(DataConfig(), description="Where the text comes from, and how it is cut into rows.")
    train: TrainConfig = Field(TrainConfig(), description="How the model is trained.")
    eval: EvalConfig = Field(EvalConfig(), description="How it is evaluated during training.")

    @model_validator(mode="after")
    def _agrees(self) -> "Recipe":
        parts = own_parts.of_sections(self.data, self.train)
        lines: list[Found] = [(path, "value", why) for path, why in parts]
        lines = lines or list(section_problems(self.model.vocab_size, self.model.max_seq_len, self.data, self.train))
        if lines:
            raise _refusal(lines, self)
        return self

    @property
    def seq_len(self) -> int:
        """Tokens of a row of the data: `data.seq_len`, by default the longest that the model takes."""
        return self.data.seq_len or self.model.max_seq_len

    def __repr__(self) -> str:
        model = self.model
        depth = f"{len(model.expanded())} layers"
        layers = schedule.format_schedule(model.layers)
        return f"<Recipe {self.name}: {layers}, {depth}, d_model {model.d_model}, context {model.max_seq_len:,}>"

    __str__ = __repr__

    def dump(self) -> str:
        """The resolved recipe as YAML that loads to an equal one, without `extends`."""
        return yaml.dump(
            plain(self), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
        )

    @property
    def notes(self) -> list[str]:
        """Remarks on what is allowed but is often a mistake."""
        unused = self.model.unused.items()
        return [f"model.{key}: defined but not in the schedule: {', '.join(names)}" for key, names in unused]


def section_problems(
    vocab_size: int, max_seq_len: int, data: DataConfig | None, train: TrainConfig | None
) -> Iterator[Found]:
    """What does not fit together in `data` and `train`, for a vocabulary and rows of `max_seq_len` tokens."""
    if data is None:
        return
    for path, why in data.problems(vocab_size=vocab_size, max_seq_len=max_seq_len):
        yield ("data", *path), "value", why
    if train is not None:
        for path, why in train.problems(data.seq_len or max_seq_len):
            yield ("train", *path), "value", why


class _Dumper(yaml.SafeDumper):
    """Writes text that the reader would take for something else in quotes, and never anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str):
    quoted = "'" if not isinstance(scalar(text), str) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=quoted)


_Dumper.add_representer(str, _text)
