"""What does not fit together in the schedules of a model: `layers` and `ffn_layers`. No torch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from zoo.errors import unknown
from zoo.feed_forward.base import FeedForwardConfig
from zoo.recipe import schedule
from zoo.recipe.checking import Found, Path, translate
from zoo.recipe.plain import plain
from zoo.recipe.schedule import Schedule, ScheduleError, Use, Where


@dataclass(frozen=True)
class Scheduled:
    """One of the two schedules, with the configs that it names.

    configs: those that are valid by themselves; names: all that are defined, so that one mistake is reported once.
    schedule: None if there is none, or none that can be read.  what: one of the configs, as messages say it.
    """

    key: str
    of: str
    what: str
    configs: Mapping[str, Any]
    names: set[str]
    schedule: Schedule | None
    read: Callable[[Any], Any]


def ffn_problems(has_ffn: bool, has_ffns: bool, has_layers: bool) -> Iterator[Found]:
    """Of `ffn`, and `ffns` with `ffn_layers`, a model has one."""
    if has_ffn and (has_ffns or has_layers):
        key = "ffns" if has_ffns else "ffn_layers"
        yield (key,), "key", "cannot stand beside ffn, which is for every layer; remove one (ffn: null, if inherited)"
    elif has_ffns != has_layers:
        yield ("ffn_layers",) if has_ffns else ("ffns",), "value", "is required: ffns and ffn_layers come together"
    elif not has_ffn and not has_ffns:
        yield ("ffn",), "value", "is required, or ffns with ffn_layers"


def model_problems(
    mixers: Scheduled, ffns: Scheduled, n_layers: int | None, d_model: int | None, ffn: FeedForwardConfig | None
) -> Iterator[Found]:
    """What does not fit together, as (path below `model`, place, message)."""
    if d_model is not None:
        named: list[tuple[tuple[str, ...], Any]] = [
            ((section.of, name), config) for section in (mixers, ffns) for name, config in section.configs.items()
        ]
        named += [] if ffn is None else [(("ffn",), ffn)]
        for place, config in named:
            yield from (((*place, *path), "value", why) for path, why in config.problems(d_model))
    if mixers.schedule is not None:
        yield from _schedule_problems(mixers, mixers.schedule, n_layers, d_model)
    if ffns.schedule is not None:
        depth = n_layers or _depth(mixers.schedule)
        yield from _schedule_problems(ffns, ffns.schedule, depth, d_model, "the model has")


def _depth(layers: Schedule | None) -> int | None:
    """Layers of a schedule; None if it cannot be expanded, which is reported for itself."""
    try:
        return None if layers is None else len(schedule.expand(layers))
    except ScheduleError:
        return None


def _schedule_problems(
    section: Scheduled, written: Schedule, n_layers: int | None, d_model: int | None, wanted: str = "n_layers is"
) -> Iterator[Found]:
    """What is wrong with a schedule: its length, names that are not defined, parts and overrides.

    wanted: how a message says where n_layers is from.
    """
    key = (section.key,)
    try:
        schedule.expand(written, n_layers, wanted)
    except ScheduleError as error:
        yield from ((key, where, why) for where, why in error.found)
    told = set()
    for use in written.uses:
        if use.name not in section.names:
            if use.name not in told:
                yield key, use.where, unknown(section.what, use.name, sorted(section.names))
            told.add(use.name)
        elif use.name in section.configs:
            for where, why in _use_problems(use, section, d_model):
                yield key, where, why


def _use_problems(use: Use, section: Scheduled, d_model: int | None) -> Iterator[tuple[Where, str]]:
    """(place, message) of what is wrong with one occurrence."""
    base = section.configs[use.name]
    parts = getattr(base, "parts", ())
    if use.part is not None and use.part not in parts:
        if parts:
            yield use.where, unknown(f"part of {use.name!r}", use.part, parts)
        else:
            yield use.where, f"{section.what} {use.name!r} ({base.kind}) has no parts; found {str(use)!r}"
    if not use.overrides:
        return
    if "kind" in use.overrides:
        yield (
            _in_with(use, ("kind",)),
            f"kind cannot change for one occurrence; define another {section.what}",
        )
        return
    changed = {**plain(base), **use.overrides}
    try:
        config = section.read(changed)
    except ValidationError as error:
        known = list(type(base).model_fields)
        lines = translate(error, changed, lambda path: [] if path else known)
        yield from ((_in_with(use, path, at == "key"), why) for path, at, why in lines)
        return
    if getattr(config, "alternation", None) != getattr(base, "alternation", None):
        why = "the order of a block's parts cannot change for one occurrence; name the part instead"
        yield _in_with(use, ("first",)), why
    if d_model is not None:
        already = base.problems(d_model)
        for path, why in config.problems(d_model):
            if (path, why) not in already:
                yield _in_with(use, path), why


def _in_with(use: Use, path: Path, on_key: bool = False) -> Where:
    return Where((*use.where.path[:-1], "with", *path), on_key=on_key)
