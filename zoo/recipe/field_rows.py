"""The fields of a config as text, read off its JSON Schema: for `zoo blocks` and for the docs. No torch."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

TAGS = ("kind", "rope_type", "task")  # the fields that say which member of a union a mapping is
_TYPES = {"integer": "whole number", "boolean": "true or false", "string": "text", "object": "mapping"}


class FieldRow(NamedTuple):
    """One field: what a recipe may write, within which bounds, what stands for it if nothing is written, and why."""

    name: str
    types: str
    bounds: str
    default: str
    description: str


def field_rows(schema: dict[str, Any], nested: dict[str, Any], literal: Callable[[str], str] = str) -> list[FieldRow]:
    """The fields of one object of a schema, without the tag that says what it is.

    nested: the schema's `$defs`.  literal: how a value that a recipe writes is shown.
    """
    required, rows = schema.get("required", ()), []
    for name, field in schema["properties"].items():
        if "const" in field and name in TAGS:
            continue
        types = " or ".join(dict.fromkeys(_types(field, nested, literal)))
        default = "required" if name in required else _default(field.get("default"), literal)
        rows.append(FieldRow(name, types, _bounds(field), default, _description(field)))
    return rows


def title(name: str, schema: dict[str, Any], literal: Callable[[str], str] = str) -> str:
    """What a recipe writes to get this config, the value of its tag; without a tag the words of its class name."""
    return _tag(schema, literal) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()


def _tag(schema: dict[str, Any], literal: Callable[[str], str]) -> str | None:
    tags = (schema["properties"].get(tag, {}).get("const") for tag in TAGS)
    return next((literal(tag) for tag in tags if tag), None)


def _types(field: dict[str, Any], nested: dict[str, Any], literal: Callable[[str], str]) -> Iterator[str]:
    if "$ref" in field:
        inner = nested[field["$ref"].rsplit("/", 1)[-1]]
        yield _tag(inner, literal) or f"mapping with {', '.join(map(literal, inner['properties']))}"
    elif options := field.get("anyOf") or field.get("oneOf"):
        for option in options:
            if option.get("type") != "null":
                yield from _types(option, nested, literal)
    elif "enum" in field or "const" in field:
        yield from (literal(str(value)) for value in field.get("enum") or [field["const"]])
    elif field.get("type") == "array" and isinstance(field.get("items"), dict):
        yield f"list of {' or '.join(_types(field['items'], nested, literal))}"
    else:
        kind = field.get("type", "value")
        yield _TYPES.get(kind, kind)


def _default(value: Any, literal: Callable[[str], str]) -> str:
    if value is None:
        return ""
    return literal(value if isinstance(value, str) else json.dumps(value))


def _description(field: dict[str, Any]) -> str:
    options = (field, *field.get("anyOf", ()))
    return next((text for option in options if (text := option.get("description"))), "")


def _bounds(field: dict[str, Any]) -> str:
    """`1 to 4,096`, `> 0`, of numbers, and the number of entries of lists."""
    options = [field, *field.get("anyOf", ())]
    keys = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minItems", "maxItems")
    found = {key: _short(option[key]) for option in options for key in keys if key in option}
    if "minItems" in found or "maxItems" in found:
        return f"{found.get('minItems', 0)} to {found.get('maxItems', 'any number of')} entries"
    low, high = found.get("minimum"), found.get("maximum")
    if low is not None and high is not None:
        return f"{low:,} to {high:,}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return ", ".join(f"{sign} {found[key]:,}" for key, sign in signs.items() if key in found)


def _short(number: float) -> int | float:
    """1e6 as 1,000,000 and not as 1,000,000.0."""
    return int(number) if number == int(number) else number
