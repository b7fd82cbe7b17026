"""The table of a config's fields, read off its JSON Schema: type, bounds, default, description. No torch."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

_TYPES = {"integer": "whole number", "boolean": "true or false", "string": "text"}


def fields_page(config: type[BaseModel]) -> str:
    """Markdown: the table of the fields of a config, then one of each config that they hold."""
    schema = config.model_json_schema()
    nested = schema.get("$defs", {})
    parts = [field_table(schema, nested)]
    for name, inner in nested.items():
        about = inner.get("description", "").split("\n\n")[0].replace("\n", " ")
        parts.append(f"### {_title(name, inner)}\n\n{about}\n\n{field_table(inner, nested)}")
    return "\n".join(parts)


def field_table(schema: dict[str, Any], nested: dict[str, Any]) -> str:
    """A Markdown table of the fields of one object of a schema, without the tag that says what it is."""
    required = schema.get("required", ())
    lines = ["| field | type | bounds | default | |", "|---|---|---|---|---|"]
    for name, field in schema["properties"].items():
        if "const" in field and name in ("kind", "rope_type"):
            continue
        types = " or ".join(dict.fromkeys(_types(field, nested)))
        default = "required" if name in required else _default(field.get("default"))
        cells = (f"`{name}`", types, _bounds(field), default, field.get("description", ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "No fields of its own.\n"


def _title(name: str, schema: dict[str, Any]) -> str:
    """What a recipe writes to get this config: the value of its tag, or its name."""
    tags = (schema["properties"].get(tag, {}).get("const") for tag in ("kind", "rope_type"))
    return next((f"`{tag}`" for tag in tags if tag), name)


def _types(field: dict[str, Any], nested: dict[str, Any]) -> Iterator[str]:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        yield _title(name, nested[name])
    elif options := field.get("anyOf") or field.get("oneOf"):
        for option in options:
            if option.get("type") != "null":
                yield from _types(option, nested)
    elif "enum" in field or "const" in field:
        yield from (f"`{value}`" for value in field.get("enum") or [field["const"]])
    elif field.get("type") == "array" and isinstance(field.get("items"), dict):
        yield f"list of {' or '.join(_types(field['items'], nested))}"
    else:
        kind = field.get("type", "value")
        yield _TYPES.get(kind, kind)


def _default(value: Any) -> str:
    if value is None:
        return ""
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def _bounds(field: dict[str, Any]) -> str:
    """`1 to 4,096`, `> 0`, of numbers, and the number of entries of lists."""
    options = [field, *field.get("anyOf", ())]
    keys = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minItems", "maxItems")
    found = {key: option[key] for option in options for key in keys if key in option}
    if "minItems" in found or "maxItems" in found:
        return f"{found.get('minItems', 0)} to {found.get('maxItems', 'any number of')} entries"
    low, high = found.get("minimum"), found.get("maximum")
    if low is not None and high is not None:
        return f"{low:,} to {high:,}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join(f"{sign} {found[key]:,}" for key, sign in signs.items() if key in found)
