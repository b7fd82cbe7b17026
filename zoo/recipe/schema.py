"""The JSON Schema of recipes, for editors, and the keys that a mapping of a recipe may have."""

from typing import Any

from pydantic.json_schema import models_json_schema

from zoo.blocks import registry
from zoo.recipe.checking import Path
from zoo.recipe.config import Recipe
from zoo.recipe.schedule import NAME

TITLE = "attention-zoo recipe"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
EXTENDS = (
    "A recipe to build on: a path relative to this file, or a name of `zoo recipes`. Mappings are merged, and this "
    "file's values replace those of the other."
)
MOST_DEPTH = 6  # keys of a path that hints look through
_NAME = f"{NAME.pattern}(\\.{NAME.pattern})?"


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of recipe files, with every block kind that is installed.

    A file may inherit keys with `extends`, so no key is required here: `zoo show` says what is missing.
    """
    definitions = schema_definitions()
    root = definitions.pop("Recipe")
    for definition in [root, *definitions.values()]:
        definition.pop("required", None)
    definitions = {name: _editable(definition) for name, definition in definitions.items()}
    root = _editable(root)
    extends = {"type": "string", "description": EXTENDS}
    root["properties"] = {"extends": extends, **root["properties"]}
    return {"$schema": DIALECT, **root, "title": TITLE, "$defs": dict(sorted(definitions.items()))}


def schema_definitions() -> dict[str, Any]:
    """The JSON Schema of every section and of every installed block kind, by name."""
    kinds = dict(registry.block_kinds())
    models: list[Any] = [(Recipe, "validation"), *((config, "validation") for config in kinds.values())]
    references, schema = models_json_schema(models)
    definitions = schema["$defs"]
    members = {kind: references[config, "validation"] for kind, config in kinds.items()}
    definitions["Block"] = {
        "oneOf": list(members.values()),
        "discriminator": {"propertyName": "kind", "mapping": {kind: ref["$ref"] for kind, ref in members.items()}},
    }
    definitions |= _for_schedules()
    model = definitions["ModelConfig"]["properties"]
    for key in ("blocks", "ffns"):
        _name_keys(model[key])
    model["blocks"]["additionalProperties"] = {"$ref": "#/$defs/Block"}
    for key in ("layers", "ffn_layers"):
        model[key] = {"$ref": "#/$defs/Schedule", "description": model[key]["description"]}
    return definitions


def _name_keys(node: dict[str, Any]) -> None:
    """Move the names that the keys of a mapping may have to `propertyNames`; pydantic writes `patternProperties`."""
    for member in [node, *node.get("anyOf", ())]:
        if "patternProperties" in member:
            (member["additionalProperties"],) = member.pop("patternProperties").values()
            member["propertyNames"] = {"pattern": f"^{NAME.pattern}$"}


def _for_schedules() -> dict[str, Any]:
    entries = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/ScheduleEntry"}}
    text = {"type": "string", "minLength": 1}
    repeat = {"repeat": {"type": "integer", "minimum": 1}, "of": {"anyOf": [text, entries]}}
    use = {
        "use": {"type": "string", "pattern": f"^{_NAME}$", "description": "Name of a block, or of a feed-forward."},
        "with": {"type": "object", "description": "Fields of it that differ for this occurrence."},
    }
    objects = [
        {"type": "object", "properties": repeat, "required": ["repeat", "of"], "additionalProperties": False},
        {"type": "object", "properties": use, "required": ["use"], "additionalProperties": False},
    ]
    return {
        "Schedule": {"anyOf": [text, entries]},
        "ScheduleEntry": {"anyOf": [text, *objects, entries]},
    }


def _editable(node: Any) -> Any:
    """Spell unions with a tag as if/then: editors then complete and check one member, and the tag may be inherited.

    `names` of a union: what may be written for a part, as text or as the tag of a mapping, by name.
    """
    if isinstance(node, list):
        return [_editable(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _editable(value) for key, value in node.items()}
    if "discriminator" not in node:
        return node
    discriminator = node.pop("discriminator")
    node.pop("oneOf", None)
    tag, mapping = discriminator["propertyName"], discriminator["mapping"]
    branches = [
        {"if": {"properties": {tag: {"const": value}}, "required": [tag]}, "then": {"$ref": reference}}
        for value, reference in mapping.items()
    ]
    if node.pop("default_kind", None):  # without a tag, which may also be inherited, the fields of any member
        members = {"anyOf": [{"$ref": reference} for reference in mapping.values()]}
        branches.append({"if": {"not": {"required": [tag]}}, "then": members})
    names = node.pop("names", None)
    part = {"type": "object", "properties": {tag: {"enum": list(names or mapping)}}, "allOf": branches}
    return {**node, "anyOf": [{"type": "string", "enum": list(names)}, part]} if names else {**node, **part}


def known_keys(path: Path, data: Any, definitions: dict[str, Any]) -> list[str]:
    """The keys that the mapping at `path` of the recipe `data` may have, by the `definitions` of the schema."""
    nodes = _members({"$ref": "#/$defs/Recipe"}, definitions, data)
    for part in path:
        children = []
        for node in nodes:
            child = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
            child = child or node.get("additionalProperties")
            children += [child] if isinstance(child, dict) else []
        data = _child(data, part)
        nodes = [member for child in children for member in _members(child, definitions, data)]
    keys = {key: None for node in nodes for key in node.get("properties", {})}
    return [*keys, "extends"] if not path else list(keys)


def paths_of(name: str, below: Path, definitions: dict[str, Any]) -> list[str]:
    """Where in a recipe a key of this name may stand, e.g. `train.optimizer.lr`; first the places under `below`.

    Not directly in `below`: there only a section of another kind has this key.
    """
    found: dict[Path, None] = {}

    def walk(node: dict, path: Path) -> None:
        for member in _members(node, definitions, None) if len(path) < MOST_DEPTH else ():
            for key, child in member.get("properties", {}).items():
                if key == name:
                    found[(*path, key)] = None
                walk(child, (*path, key))
            if isinstance(member.get("additionalProperties"), dict):
                walk(member["additionalProperties"], (*path, "<name>"))

    walk({"$ref": "#/$defs/Recipe"}, ())
    others = [path for path in found if not _same_place(path[:-1], below)]
    nearest = sorted(others, key=lambda path: (not _same_place(path[: len(below)], below), len(path)))
    return [".".join(map(str, path)) for path in nearest]


def _same_place(path: Path, place: Path) -> bool:
    """Whether a path of the schema, in which `<name>` stands for any name, is this place of a recipe."""
    return len(path) == len(place) and all(a in (b, "<name>") for a, b in zip(path, place, strict=True))


def _child(data: Any, part: str | int) -> Any:
    try:
        return data[part]
    except (KeyError, IndexError, TypeError):
        return None


def _members(node: dict, definitions: dict, data: Any) -> list[dict]:
    """The schemas a value may follow: references resolved, and of a union the member that the value names."""
    if "$ref" in node:
        return _members(definitions[node["$ref"].rsplit("/", 1)[-1]], definitions, data)
    if "discriminator" in node and isinstance(data, dict):
        tag, mapping = node["discriminator"]["propertyName"], node["discriminator"]["mapping"]
        named = data.get(tag, node.get("default_kind"))
        kinds = node.get("names", {}).get(named, (named,)) if isinstance(named, str) else ()
        if found := [mapping[kind] for kind in kinds if kind in mapping]:
            return [member for ref in found for member in _members({"$ref": ref}, definitions, data)]
    options = node.get("anyOf", node.get("oneOf"))
    return [member for option in options for member in _members(option, definitions, data)] if options else [node]
