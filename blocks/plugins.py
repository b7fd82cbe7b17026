"""Modules that bring block kinds: which may be imported, and on whose word. No torch.

Importing a module runs its code.  A recipe that the user wrote may name any module; a run folder may come from somebody
else, so its plugins are imported only if they are installed or if the user has named them.
"""

import json
import os
import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlparse

_named: dict[str, None] = {}


def load_plugin(module: str) -> None:
    """Import a module of another package, which calls `register` for each kind it brings.

    Raises ValueError, with the module's name and what went wrong, if it cannot be imported.
    """
    try:
        import_module(module)
    except (Exception, SystemExit) as error:  # a module can raise anything while it is imported
        raise ValueError(f"plugin {module!r} cannot be imported: {type(error).__name__}: {error}") from error
    _named[module] = None


def load_plugin_of_run(module: str) -> None:
    """As `load_plugins_of_run`, of one module."""
    load_plugins_of_run([module])


def load_plugins_of_run(modules: Iterable[str]) -> None:
    """Import the plugins that a run folder names, if each is installed or was named by the user before.

    Raises ValueError that names the others and says how to allow them; then nothing is imported.
    """
    wanted = [module for module in modules if module not in _named]
    if unknown := [module for module in wanted if not is_installed(module)]:
        several = len(unknown) > 1
        plugins, are, them, their = ("plugins", "are", "them", "their") if several else ("plugin", "is", "it", "its")
        in_python = f"zoo.blocks.load_plugin{' of each' if several else f'({unknown[0]!r})'} first"
        raise ValueError(
            f"{plugins} {', '.join(map(repr, unknown))} of a run folder {are} not imported, because no installed "
            f"package has {them} and importing runs {their} code; if you trust {them}, add "
            f"{' '.join(f'--plugin {module}' for module in unknown)} (in Python: {in_python})"
        )
    for module in wanted:
        load_plugin(module)


def named_plugins() -> list[str]:
    """The modules that `load_plugin` has imported in this process, for the processes that it starts."""
    return list(_named)


def is_installed(module: str) -> bool:
    """Whether importing `module` runs the code of an installed package, decided without importing anything.

    What lies in the working directory does not count, even if it calls itself installed (*.dist-info) or has the name
    of a package.  A `__main__` module does not count: it is a program.
    """
    top, *inner = module.split(".")
    if "__main__" in inner or top in sys.builtin_module_names:
        return False
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [] if spec is None else [*filter(None, [spec.origin]), *(spec.submodule_search_locations or ())]
    roots = [root for distribution in _installed_with(top) for root in _roots(distribution)]
    return bool(places) and all(any(_real(place).is_relative_to(root) for root in roots) for place in places)


def distributions() -> list[metadata.Distribution]:
    """The installed packages, without what the working directory says is one."""
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # it was removed
        here = None
    return list(metadata.distributions(path=[path for path in sys.path if os.path.realpath(path or ".") != here]))


@cache
def offers() -> dict[str, list[metadata.EntryPoint]]:
    """Group -> the entry points that installed packages have in it, for groups `zoo.*`; looked for once.

    Of a package that is installed twice, the one that comes first on sys.path counts.
    """
    found: dict[str, list[metadata.EntryPoint]] = {}
    seen: set[str] = set()
    for package in distributions():
        entries = [entry for entry in package.entry_points if entry.group.startswith("zoo.")]
        if entries and package.name not in seen:
            seen.add(package.name)
            for entry in entries:
                found.setdefault(entry.group, []).append(entry)
    return found


@cache
def _by_module() -> dict[str, list[metadata.Distribution]]:
    found: dict[str, list[metadata.Distribution]] = {}
    for distribution in distributions():
        for name in _top_names(distribution):
            found.setdefault(name, []).append(distribution)
    return found


def _top_names(distribution: metadata.Distribution) -> set[str]:
    stated = distribution.read_text("top_level.txt")
    if stated:
        return set(stated.split())
    return {path.parts[0].removesuffix(".py") for path in distribution.files or () if path.suffix == ".py"}


def _installed_with(top: str) -> list[metadata.Distribution]:
    """The distributions that have a top-level module; an editable one may not list its files."""
    editable = [d for d in distributions() if _editable_root(d) is not None and top in _stated_names(d)]
    return [*_by_module().get(top, []), *editable]


def _stated_names(distribution: metadata.Distribution) -> set[str]:
    """The top-level modules of an editable distribution: as it states them, else by its name and its entry points.

    Not all that lies in its folder, which may be the working directory.
    """
    stated = distribution.read_text("top_level.txt")
    if stated:
        return set(stated.split())
    entries = {entry.value.partition(":")[0].partition(".")[0].strip() for entry in distribution.entry_points}
    return {re.sub(r"[-.]+", "_", distribution.metadata["Name"] or ""), *entries}


def _roots(distribution: metadata.Distribution) -> list[Path]:
    """The folders that a distribution's modules lie in: that of its metadata, or the source of an editable one."""
    editable = _editable_root(distribution)
    return [_real(str(distribution.locate_file("")))] if editable is None else [editable]


def _editable_root(distribution: metadata.Distribution) -> Path | None:
    try:
        stated = json.loads(distribution.read_text("direct_url.json") or "{}")
        if stated.get("dir_info", {}).get("editable"):
            return _real(unquote(urlparse(stated["url"]).path))
    except (ValueError, AttributeError, KeyError):
        return None
    return None


def _real(path: str) -> Path:
    return Path(os.path.realpath(path))
