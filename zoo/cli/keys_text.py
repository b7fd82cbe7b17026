"""What `zoo keys` prints: all keys of a recipe as a table, or each key that is asked for in words. No torch."""

from collections.abc import Sequence
from dataclasses import asdict

from zoo.errors import Problem, RecipeError
from zoo.json_text import json_text
from zoo.parts import FAMILIES
from zoo.recipe import keys as recipe_keys
from zoo.recipe.keys import Key
from zoo.tables import Table, Text, rendered


def as_json(asked: Sequence[str]) -> str:
    """The keys as JSON, each with its path, types, bounds, default, description, family and kinds."""
    return json_text([asdict(key) for key in _found(asked)])


def as_text(asked: Sequence[str], width: int | None = None) -> str:
    """A table of the sections' keys; or, for each key that is asked for, what it is and which keys are inside.

    Of a mapping with a `kind` these are the fields of every kind that it may have, each with its kinds.
    """
    if not asked:
        end = "The fields of parts: zoo keys KEY for one that has a kind, such as zoo keys model.ffn"
        return rendered([_table(_of_sections(recipe_keys.all_keys())), Text(), Text(end)], width)
    _found(asked)
    parts: list = []
    for name in asked:
        for key in _found([name]):
            parts += [*_described(key), Text()]
        inside = recipe_keys.below(name)
        if of_sections := _of_sections(inside):
            parts += [_table(of_sections), Text()]
        elif fields := [key for key in inside if key.path.count(".") == recipe_keys.depth(name)]:
            families = {key.family for key in recipe_keys.find(name) if key.family}
            parts += [_table_of_fields(fields, {kind for one in families for kind in FAMILIES[one].kinds()}), Text()]
    return rendered(parts[:-1], width)


def _found(asked: Sequence[str]) -> list[Key]:
    """The keys that are asked for, without any all of them.  Raises RecipeError for one that there is not."""
    if not asked:
        return recipe_keys.all_keys()
    found = {name: recipe_keys.find(name) for name in asked}
    problems = [
        Problem(f"no key of a recipe; zoo keys lists them.{recipe_keys.nearest(name)}", key=name)
        for name, keys in found.items()
        if not keys
    ]
    if problems:
        raise RecipeError(problems)
    return [key for keys in found.values() for key in keys]


def _of_sections(keys: list[Key]) -> list[Key]:
    return [key for key in keys if not key.kinds]


def _table(keys: list[Key]):
    table = Table("key", "value", "default", "meaning")
    table.columns[0].no_wrap = True
    for key in keys:
        table.add_row(key.path, key.values, key.default, key.description)
    return table


def _table_of_fields(keys: list[Key], kinds: set[str]):
    """Fields of a part that may have these kinds, by their names alone, because the path above is the same for all."""
    table = Table("field", "of kinds", "value", "default", "meaning")
    table.columns[0].no_wrap = True
    for key in sorted(keys, key=lambda key: key.name):
        of = "all" if kinds == set(key.kinds) else ", ".join(key.kinds)
        table.add_row(key.name, of, key.values, key.default, key.description)
    return table


def _described(key: Key) -> list[Text]:
    """Path, values and default, meaning, and what to ask next."""
    of = f"  (of {', '.join(key.kinds)})" if key.kinds else ""
    default = {"": "", "required": "; required"}.get(key.default, f"; default {key.default}")
    lines = [Text(key.path + of, style="bold"), Text(f"  {key.values}{default}"), Text(f"  {key.description}")]
    if key.family:
        command = "zoo blocks NAME" if key.family == "mixers" else f"zoo parts {key.family} NAME"
        lines.append(Text(f"  kinds: {', '.join(FAMILIES[key.family].kinds())}; the fields of one: {command}"))
    return lines
