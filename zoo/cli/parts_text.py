"""What `zoo parts` prints: the families, the kinds of one, the fields of one kind; as text and as JSON. No torch."""

from collections.abc import Iterator
from typing import Any

from zoo.errors import Problem, RecipeError, unknown
from zoo.json_text import json_text
from zoo.parts import FAMILIES, Family
from zoo.recipe.field_rows import field_rows
from zoo.report.show import first_line
from zoo.tables import Table, Text, rendered


def family_named(name: str) -> Family:
    """The family of that name, its plural or its singular. Raises RecipeError if there is none."""
    for family in FAMILIES.values():
        if name in (family.name, family.name.removesuffix("s")):
            return family
    raise RecipeError([Problem(unknown("family of parts", name, FAMILIES))])


def broken() -> Iterator[str]:
    """Why each part of another package that cannot be used cannot."""
    for family in FAMILIES.values():
        yield from family.broken().values()


def as_text(family: str | None, kind: str | None, width: int | None = None) -> str:
    """All families; the kinds of one; or the fields of one kind."""
    if family is None:
        return _families(width)
    found = family_named(family)
    return _kinds(found, width) if kind is None else _fields(found, kind, width)


def as_json(family: str | None, kind: str | None) -> str:
    """The same as JSON: each kind's summary and JSON Schema, of a block its parts."""
    if family is None:
        every = {name: {"summary": each.summary, "kinds": each.kinds()} for name, each in FAMILIES.items()}
        return json_text(every)
    found = family_named(family)
    chosen = dict(found.classes()) if kind is None else {kind: _known(found, kind)}
    return json_text({name: _described(config) for name, config in chosen.items()})


def _families(width: int | None) -> str:
    table = Table("family", "kinds", "what it is")
    for family in FAMILIES.values():
        table.add_row(family.name, ", ".join(family.kinds()), family.summary)
    end = "The kinds of one: zoo parts FAMILY. The fields of a kind: zoo parts FAMILY NAME"
    return rendered([table, Text(), Text(end)], width)


def _kinds(family: Family, width: int | None) -> str:
    has_parts = any(getattr(config, "parts", ()) for _, config in family.classes())
    table = Table("kind", *(["parts"] if has_parts else []), "what it is")
    for name, config in family.classes():
        parts = [" ".join(getattr(config, "parts", ()))] if has_parts else []
        table.add_row(name, *parts, first_line(config))
    command = "zoo blocks NAME" if family.name == "mixers" else f"zoo parts {family.name} NAME"
    return rendered([table, Text(), Text(f"The fields of one: {command}")], width)


def _fields(family: Family, kind: str, width: int | None) -> str:
    config = _known(family, kind)
    table, schema = Table("field", "type", "default", "description"), config.model_json_schema()
    for row in field_rows(schema, schema.get("$defs", {})):
        table.add_row(row.name, ", ".join(filter(None, (row.types, row.bounds))), row.default, row.description)
    about = Text(_reflowed(config.__doc__ or ""))
    parts = getattr(config, "parts", ())
    lines = [Text(f"parts: {', '.join(f'{kind}.{part}' for part in parts)}"), Text()] if parts else []
    return rendered([Text(kind, style="bold"), about, Text(), *lines, table], width)


def _described(config: Any) -> dict[str, Any]:
    parts = {"parts": list(config.parts)} if hasattr(config, "parts") else {}
    return {"summary": first_line(config), **parts, "schema": config.model_json_schema()}


def _reflowed(docstring: str) -> str:
    """Paragraphs on one line each, so that the terminal breaks them."""
    paragraphs = docstring.strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _known(family: Family, kind: str) -> Any:
    known = dict(family.classes())
    if kind not in known:
        raise RecipeError([Problem(unknown(family.what, kind, known))])
    return known[kind]
