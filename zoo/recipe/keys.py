"""Every key that a recipe may have, read off the config classes: type, bounds, default, meaning. No torch.

Used by `zoo keys`, by the reference page, and by the hint after the mistakes of a recipe.
"""

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from zoo.errors import Problem, did_you_mean
from zoo.parts import FAMILIES
from zoo.recipe.field_rows import field_rows
from zoo.recipe.schema import EXTENDS, schema_definitions

NAME, ENTRY = "<name>", "<n>"  # in a path: a name of the user's own, the number of an entry of a list
MOST_DEPTH = 6
MOST_HINTS = 3


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    path: `train.workers`, `model.blocks.<name>.window`.  family: that of the parts it chooses from, such as `sources`.
    kinds: of the parts whose field it is; empty for a key of a section.  default: "" for none, "required".
    """

    path: str
    types: str
    bounds: str
    default: str
    description: str
    family: str | None = None
    kinds: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def values(self) -> str:
        """Type and bounds: `whole number, 1 to 4,096`."""
        return ", ".join(filter(None, (self.types, self.bounds)))


def all_keys() -> list[Key]:
    """Every key in the order of the recipe's sections; a field that several kinds have alike is there once."""
    definitions = schema_definitions()
    extends = Key("extends", "text", "", "", EXTENDS)
    found: dict[Key, tuple[str, ...]] = {extends: ()}
    for key in _walk(definitions["Recipe"], definitions, (), ()):
        bare = replace(key, kinds=())
        found[bare] = tuple(dict.fromkeys((*found.get(bare, ()), *key.kinds)))
    return [replace(key, kinds=kinds) for key, kinds in found.items()]


def _walk(node: dict, definitions: dict, path: tuple[str, ...], kinds: tuple[str, ...]) -> Iterator[Key]:
    if len(path) >= MOST_DEPTH:
        return
    for name, field in node.get("properties", {}).items():
        inner, below = _inside(field, definitions, (*path, name))
        shown = _spelt(field, inner, below)
        required = [name] if name in node.get("required", ()) else []
        for row in field_rows({"properties": {name: shown}, "required": required}, definitions):
            family = _family(inner)
            yield Key(".".join((*path, name)), *row[1:], family=family, kinds=kinds)
        if "discriminator" in inner:
            for kind, reference in inner["discriminator"]["mapping"].items():
                of = (kind,) if _family(inner) else kinds  # kinds of RoPE scaling, for example, are no parts
                yield from _walk(definitions[reference.rsplit("/", 1)[-1]], definitions, below, of)
        else:
            yield from _walk(inner, definitions, below, kinds)


def _inside(field: dict, definitions: dict, path: tuple[str, ...]) -> tuple[dict, tuple[str, ...]]:
    """What a key holds, with references resolved and null left out, and the path to its keys."""
    if "$ref" in field:
        return _inside(definitions[field["$ref"].rsplit("/", 1)[-1]], definitions, path)
    options = [option for option in field.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) == 1:
        return _inside(options[0], definitions, path)
    if isinstance(field.get("additionalProperties"), dict) and "properties" not in field:
        return _inside(field["additionalProperties"], definitions, (*path, NAME))
    if isinstance(field.get("items"), dict):
        inner, below = _inside(field["items"], definitions, (*path, ENTRY))
        return (inner, below) if "discriminator" in inner or "properties" in inner else (field, path)
    return field, path


def _spelt(field: dict, inner: dict, below: tuple[str, ...]) -> dict[str, Any]:
    """The field with words for its type if it holds parts, a section or a schedule; else as it is."""
    if field.get("$ref", "").endswith("/Schedule"):
        what = "schedule, text or a list"
    elif "discriminator" in inner:
        what = f"mapping with a `{inner['discriminator']['propertyName']}`"
        what = f"name or {what}" if "names" in inner else what
    elif "properties" in inner:
        what = "mapping"
    else:
        return field
    what = {NAME: f"names, each with a {what}", ENTRY: f"list, each entry a {what}"}.get(below[-1], what)
    return {"type": what, "description": field.get("description", "")}


def _family(inner: dict) -> str | None:
    """The family whose kinds a key chooses from."""
    mapping = inner.get("discriminator", {}).get("mapping", {})
    return next((name for name, family in FAMILIES.items() if mapping and set(mapping) == set(family.kinds())), None)


def find(asked: str) -> list[Key]:
    """The keys at a path, as errors spell it, or with this name; empty if there are none.

    A path that ends in a name of the user's own, such as `model.blocks.local`, means the key that holds the names.
    """
    keys, parts = all_keys(), _parts(asked)
    at_path = [key for key in keys if _fits(key.path.split("."), parts)]
    if at_path or len(parts) == 1:
        return at_path or [key for key in keys if key.name == parts[0]]
    is_name = any(_fits(path[: len(parts)], parts) for key in keys if len(path := key.path.split(".")) > len(parts))
    return find(".".join(parts[:-1])) if is_name else []


def below(asked: str) -> list[Key]:
    """The keys inside the section at a path."""
    parts = _parts(asked)
    return [
        key for key in all_keys() if len(path := key.path.split(".")) > len(parts) and _fits(path[: len(parts)], parts)
    ]


def depth(asked: str) -> int:
    """How many keys lead to the one at a path: `data.sources[0]` is 3."""
    return len(_parts(asked))


def _parts(asked: str) -> list[str]:
    return re.sub(r"\[(\d+)\]", r".\1", asked).strip(".").split(".")


def _fits(path: list[str], parts: list[str]) -> bool:
    return len(path) == len(parts) and all(a == b or a in (NAME, ENTRY) for a, b in zip(path, parts, strict=True))


def nearest(asked: str) -> str:
    """A suggestion for a key that there is not, or "": of the keys with the nearest name, the nearest path."""
    paths: dict[str, list[str]] = {}
    for key in all_keys():
        paths.setdefault(key.name, []).append(key.path)
    name = get_close_matches(_parts(asked)[-1], paths, n=1)
    if not name or len(_parts(asked)) == 1:
        return did_you_mean(asked, paths)
    return f" Did you mean {get_close_matches(asked, paths[name[0]], n=1, cutoff=0)[0]!r}?"


def hint(problems: Iterable[Problem]) -> str | None:
    """The command that explains the keys of a recipe's mistakes; None if none of them names a key."""
    found: dict[str, None] = {}
    for problem in problems:
        path = (problem.key or "").partition("layers")
        key = path[0] + path[1] if path[1] else path[0]
        if problem.message.startswith("unknown key"):
            key = key.rpartition(".")[0]
        if key:
            found[key] = None
    return f"what these keys mean: zoo keys {shlex.join(list(found)[:MOST_HINTS])}" if found else None
