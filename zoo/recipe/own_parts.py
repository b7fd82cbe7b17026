"""Parts of other packages: whether their configs state the facts of their family (`facts` of its base). No torch.

The zoo's own parts are not asked here; tests hold that they answer.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from zoo.blocks.making import described, is_own
from zoo.data.config import DataConfig
from zoo.errors import shorten
from zoo.training.config import TrainConfig

if TYPE_CHECKING:
    from zoo.recipe.config import LayerConfig

FieldPath = tuple[str | int, ...]


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
    if not hasattr(part, "facts"):  # fields of a part that are a mapping
        return
    for name, ask, may_be in part.facts(d_model, seq_len, of):
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
