"""Parts of other packages: whether their configs answer what the zoo asks. No torch.

The zoo's own parts are not asked here; tests hold that they answer.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from zoo.blocks.config import BlockConfig
from zoo.blocks.cost import Cost
from zoo.blocks.making import described, is_own
from zoo.blocks.patterns.base import PatternConfig
from zoo.blocks.positions.base import PositionConfig
from zoo.blocks.projections.base import ProjectionConfig, ResolvedProjection
from zoo.blocks.resolved import ResolvedMixer
from zoo.data.config import DataConfig, Source, TokenizerConfig
from zoo.errors import shorten
from zoo.feed_forward.base import FeedForwardConfig
from zoo.training.config import TrainConfig
from zoo.training.optimizers.base import OptimizerConfig
from zoo.training.schedules import ScheduleConfig

if TYPE_CHECKING:
    from zoo.recipe.config import LayerConfig

FieldPath = tuple[str | int, ...]
ROW = 64  # tokens of the row that patterns are asked about
Number = (int, float)


class _Fact(NamedTuple):
    """What a part states: its name in messages, what returns it, and its allowed types."""

    name: str
    ask: Callable[[], Any]
    may_be: tuple[type, ...]


def failure(part: BaseModel, d_model: int, seq_len: int, of: str | None = None) -> str | None:
    """What is wrong with a part, or with one inside it, in one line; None if all of it is the zoo's or answers.

    of: which part of a block that has several.
    """
    for inside in _with_inner(part):
        if is_own(type(inside)):
            continue
        why = _module_failure(inside) or next(_failures(inside, d_model, seq_len, of), None)
        if why is not None:
            place = f"{type(inside).__module__}:{type(inside).__qualname__}"
            return f"{getattr(inside, 'kind', '')!r} ({place}): {why}"
    return None


def failures(layers: Iterable["LayerConfig"]) -> Iterator[tuple[FieldPath, str]]:
    """(path below `model`, what is wrong) for the blocks and feed-forwards of the layers, each named once."""
    asked: set[tuple] = set()
    for layer in layers:
        ffn = ("ffn",) if layer.ffn_name == "ffn" else ("ffns", layer.ffn_name)
        for path, part, of in ((("blocks", layer.name), layer.config, layer.part), (ffn, layer.ffn, None)):
            if (path, of) not in asked:
                asked.add((path, of))
                why = failure(part, layer.d_model, layer.seq_len, of)
                if why is not None:
                    yield path, why


def of_sections(data: DataConfig, train: TrainConfig) -> Iterator[tuple[FieldPath, str]]:
    """(path, what is wrong) for the parts of the `data` and `train` sections."""
    parts: dict[FieldPath, BaseModel | None] = {
        ("train", "optimizer"): train.optimizer,
        ("train", "schedule"): train.schedule,
        ("data", "tokenizer"): data.tokenizer,
        ("data", "source"): data.source,
        ("data", "validation_source"): data.validation_source,
        **{("data", "sources", i): source for i, source in enumerate(data.sources or ())},
    }
    for path, part in parts.items():
        why = None if part is None else failure(part, 0, 0)
        if why is not None:
            yield path, why


def _with_inner(part: BaseModel) -> Iterator[BaseModel]:
    """The configs in the fields of a part, then the part itself: a fault is named where it is."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, BaseModel):
                yield from _with_inner(one)
    yield part


def _failures(part: Any, d_model: int, seq_len: int, of: str | None) -> Iterator[str]:
    for name, ask, may_be in _facts(part, d_model, seq_len, of):
        try:
            found = ask()
        except Exception as error:  # the code of another package
            yield f"{name} fails: {described(error)}"
            return
        wrong = not isinstance(found, may_be) or (isinstance(found, float) and not math.isfinite(found))
        if wrong:
            types = " or ".join("None" if one is type(None) else one.__name__ for one in may_be)
            yield f"{name} must give {types}; found {shorten(found)}"
            return


def _facts(part: Any, d_model: int, seq_len: int, of: str | None) -> Iterator[_Fact]:
    """What is asked of a part, by its family."""
    row = min(seq_len, ROW)
    if isinstance(part, PatternConfig):
        yield _Fact("resolve", lambda: part.resolve(d_model, seq_len), (PatternConfig,))
        yield _Fact("describe", part.describe, (str,))
        yield _Fact("pairs", lambda: part.resolve(d_model, seq_len).pairs(row), Number)
        yield _Fact("reach", lambda: part.resolve(d_model, seq_len).reach(1, row), (int,))
        yield _Fact("kept_tokens", lambda: part.resolve(d_model, seq_len).kept_tokens(row), (int,))
    elif isinstance(part, ProjectionConfig):
        yield _Fact("resolve", lambda: part.resolve(d_model, seq_len), (ResolvedProjection,))
    elif isinstance(part, PositionConfig):
        yield _Fact("shown", lambda: part.shown, (str, *Number))
        yield _Fact("values", lambda: part.values, (tuple,))
    elif isinstance(part, FeedForwardConfig):
        yield _Fact("resolve", lambda: part.resolve(d_model, seq_len), (FeedForwardConfig,))
        yield _Fact("describe", part.describe, (str,))
        for name in ("parameters", "active_parameters", "flops", "activation_bytes"):
            ask = getattr(part.resolve(d_model, seq_len), name)
            yield _Fact(name, partial(ask, d_model), Number)
    elif isinstance(part, BlockConfig):
        yield from _of_block(part, d_model, seq_len, of)
    elif isinstance(part, OptimizerConfig):
        yield _Fact("state_bytes", lambda: part.state_bytes(1000), Number)
        yield _Fact("step_traffic", lambda: part.step_traffic(1000), Number)
    elif isinstance(part, ScheduleConfig):
        yield _Fact("decay_span", lambda: part.decay_span, (str, type(None)))
        for progress in (0.0, 0.5, 1.0):
            yield _Fact(f"after_warmup({progress:g})", partial(part.after_warmup, progress), Number)
    elif isinstance(part, Source):
        yield _Fact("describe", part.describe, (str,))
    elif isinstance(part, TokenizerConfig):
        yield _Fact("known_vocab_size", part.known_vocab_size, (int, type(None)))


def _of_block(block: BlockConfig, d_model: int, seq_len: int, of: str | None) -> Iterator[_Fact]:
    yield _Fact("resolve", lambda: block.resolve(d_model, seq_len, of), (ResolvedMixer,))
    mixer = block.resolve(d_model, seq_len, of)
    yield _Fact("describe", mixer.describe, (str,))
    yield _Fact("cost", lambda: mixer.cost(seq_len), (Cost,))
    cost = mixer.cost(seq_len)
    for name in ("total_parameters", "cache_nominal_elements", "cache_held_elements"):
        yield _Fact(f"cost: {name}", partial(getattr, cost, name), Number)
    yield _Fact("cost: total_flops", lambda: cost.total_flops, Number)
    yield _Fact("activation_bytes", lambda: mixer.activation_bytes(seq_len), (*Number, type(None)))


def _module_failure(part: Any) -> str | None:
    """What is wrong with the name of what runs, as far as that is known without importing it."""
    target = getattr(type(part), "module", None)
    if not target:
        return None
    module, colon, name = str(target).partition(":")
    if not (colon and name):
        return f"module must be 'package.module:name'; found {shorten(target)}"
    if module in sys.modules:
        return None
    try:
        found = find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    return None if found else f"module: there is no module {module!r}; found {shorten(target)}"
