"""The names of block kinds and where their config classes live; imported when looked up. No torch.

Another package adds a kind with an entry point of the group `zoo.blocks`, name = kind, value = "module:ConfigClass".
"""

import difflib
from collections.abc import Iterator
from functools import cache
from importlib import import_module, metadata
from typing import TYPE_CHECKING

from zoo.blocks.plugins import distributions

if TYPE_CHECKING:
    from zoo.blocks.config import BlockConfig

ENTRY_POINTS = "zoo.blocks"
_KINDS = {
    "attention": "zoo.blocks.config:AttentionConfig",
    "full": "zoo.blocks.kinds.full:FullConfig",
    "window": "zoo.blocks.kinds.window:WindowConfig",
    "mla": "zoo.blocks.kinds.mla:MLAConfig",
    "gla": "zoo.blocks.kinds.gla:GLAConfig",
    "nsa": "zoo.blocks.kinds.nsa:NSAConfig",
    "ansa": "zoo.blocks.kinds.ansa:AnsaConfig",
}


@cache
def _installed() -> tuple[dict[str, str], dict[str, str]]:
    """(kind -> target of what installed packages offer, kind -> why an offer is refused).

    A name of the zoo's own, or one offered twice for different classes, is refused.
    """
    found: dict[str, str] = {}
    refused: dict[str, str] = {}
    for entry in _offered():
        taken = _KINDS.get(entry.name) or found.get(entry.name, entry.value)
        if taken != entry.value:
            refused[entry.name] = f"is offered by {entry.value} and by {taken}; uninstall one"
        else:
            found[entry.name] = entry.value
    return {kind: target for kind, target in found.items() if kind not in refused}, refused


def _offered() -> "Iterator[metadata.EntryPoint]":
    """The entry points of installed packages; of a package that is there twice, those of the first on sys.path."""
    seen: set[str] = set()
    for package in distributions():
        entries = [entry for entry in package.entry_points if entry.group == ENTRY_POINTS]
        if entries and package.name not in seen:
            seen.add(package.name)
            yield from entries


def broken() -> dict[str, str]:
    """What other packages offer and cannot be used, by name: the reason. Imports every kind."""
    found, refused = _installed()
    reasons = {kind: f"block kind {kind!r} {why}" for kind, why in refused.items()}
    for kind in dict.fromkeys([*found, *_KINDS]):
        try:
            config_class(kind)
        except ValueError as error:
            reasons[kind] = str(error)
    return reasons


def register(kind: str, target: str) -> None:
    """Add a kind for this process. target: "module:ConfigClass", imported at the first look-up."""
    if kind in _KINDS and _KINDS[kind] != target:
        raise ValueError(f"block kind {kind!r} is taken by {_KINDS[kind]}; found {target}")
    _KINDS[kind] = target


def kinds() -> list[str]:
    """Every known kind, the zoo's own first."""
    return [*_KINDS, *(kind for kind in _installed()[0] if kind not in _KINDS)]


def config_class(kind: str) -> "type[BlockConfig]":
    """The config class of a kind.

    Raises ValueError naming the known kinds, and the nearest, if there is none; or what failed if its module does.
    """
    target = _KINDS.get(kind) or _installed()[0].get(kind)  # the zoo's own need no look at what is installed
    if target is None and kind in _installed()[1]:
        raise ValueError(f"block kind {kind!r} {_installed()[1][kind]}")
    if target is None:
        known = kinds()
        near = difflib.get_close_matches(str(kind), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown block kind {kind!r}; known: {', '.join(known)}.{hint}")
    module, _, name = target.partition(":")
    try:
        made = getattr(import_module(module), name)
    except Exception as error:  # a module of another package can raise anything while it is imported
        raise ValueError(f"block kind {kind!r} cannot be loaded from {target}: {error}") from error
    _check_class(kind, target, made)
    return made


def _check_class(kind: str, target: str, made: object) -> None:
    """Raise ValueError unless it is a BlockConfig that calls itself by the name it is offered under."""
    from zoo.blocks.config import BlockConfig

    if not (isinstance(made, type) and issubclass(made, BlockConfig)):
        raise ValueError(f"block kind {kind!r}: {target} must be a subclass of zoo.blocks.config.BlockConfig")
    own = made.model_fields["kind"].default
    if own != kind and kind not in _KINDS:
        raise ValueError(f"block kind {kind!r}: {target} must have the default kind {kind!r}; found {own!r}")


def block_kinds() -> "Iterator[tuple[str, type[BlockConfig]]]":
    """(kind, config class) of every known kind that loads; imports them all. `broken` says what is left out."""
    for kind in kinds():
        try:
            yield kind, config_class(kind)
        except ValueError:
            continue
