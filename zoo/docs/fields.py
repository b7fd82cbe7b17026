"""The table of a config's fields, and of those of the configs that it holds. No torch."""

from typing import Any

from pydantic import BaseModel

from zoo.recipe.field_rows import field_rows, title


def fields_page(config: type[BaseModel]) -> str:
    """Markdown: the table of the fields of a config, then one of each config that they hold."""
    schema = config.model_json_schema()
    nested = schema.get("$defs", {})
    parts = [field_table(schema, nested)]
    for name, inner in nested.items():
        about = inner.get("description", "").split("\n\n")[0].replace("\n", " ")
        parts.append(f"### {title(name, inner, _code)}\n\n{about}\n\n{field_table(inner, nested)}")
    return "\n".join(parts)


def field_table(schema: dict[str, Any], nested: dict[str, Any]) -> str:
    """A Markdown table of the fields of one object of a schema."""
    lines = ["| field | type | bounds | default | |", "|---|---|---|---|---|"]
    for row in field_rows(schema, nested, _code):
        cells = (_code(row.name), *row[1:])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "No fields of its own.\n"


def _code(value: str) -> str:
    return f"`{value}`"
