"""The names of block kinds and where their config classes live; imported when looked up. No torch.

Another package adds a kind with an entry point of the group `zoo.blocks`, name = kind, value = "module:ConfigClass".
"""

import difflib
from collections.abc import Iterator
from functools import cache
from importlib import import_module, metadata
from typing import TYPE_CHECKING

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
def _installed() -> dict[str, str]:
    """Kinds that installed packages offer. A name of the zoo's own, or offered twice, is refused."""
    found: dict[str, str] = {}
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        if entry.name in _KINDS or found.get(entry.name, entry.value) != entry.value:
            other = _KINDS.get(entry.name) or found[entry.name]
            raise ValueError(f"block kind {entry.name!r} is offered by {entry.value} and by {other}; uninstall one")
        found[entry.name] = entry.value
    return found


def register(kind: str, target: str) -> None:
    """Add a kind for this process. target: "module:ConfigClass", imported at the first look-up."""
    if kind in _KINDS and _KINDS[kind] != target:
        raise ValueError(f"block kind {kind!r} is taken by {_KINDS[kind]}; found {target}")
    _KINDS[kind] = target


def kinds() -> list[str]:
    """Every known kind, the zoo's own first."""
    return [*_KINDS, *(kind for kind in _installed() if kind not in _KINDS)]


def config_class(kind: str) -> "type[BlockConfig]":
    """The config class of a kind.

    Raises ValueError naming the known kinds, and the nearest, if there is none; or what failed if its module does.
    """
    target = _KINDS.get(kind) or _installed().get(kind)
    if target is None:
        known = kinds()
        near = difflib.get_close_matches(str(kind), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown block kind {kind!r}; known: {', '.join(known)}.{hint}")
    module, _, name = target.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"block kind {kind!r} cannot be loaded from {target}: {error}") from error


def block_kinds() -> "Iterator[tuple[str, type[BlockConfig]]]":
    """(kind, config class) of every known kind; imports them all."""
    return ((kind, config_class(kind)) for kind in kinds())
