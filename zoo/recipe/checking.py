"""What pydantic finds wrong, in the zoo's words: what would be right, what was found, and which key it is."""

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

from zoo.errors import Problem, did_you_mean, shorten, unknown
from zoo.recipe.schedule import Where, key_suffix
from zoo.recipe.yaml_reader import Node

Path = tuple[str | int, ...]
Found = tuple[Path, str | Where, str]  # path of the key, "key" | "value" | a place inside the value, what is wrong

MOST_PROBLEMS = 100  # of one recipe that are listed; looking for near names takes time for each
UNION_TAGS = ("rope_type",)  # of pydantic's own unions; parts, which have a kind, are looked up by a registry

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text of the form {pattern}",
}


# Keys of earlier versions -> why they were removed, and what to do.
REMOVED: dict[Path, str] = {
    ("train", "compile"): "was removed: on a GPU it recompiled for minutes before the first step. Remove the key; "
    "train.cuda_graph ends the waiting for Python, and norms and SwiGLU are fused without it",
}


def translate(
    error: ValidationError,
    data: Any,
    known_keys: Callable[[Path], list[str]],
    elsewhere: Callable[[Path], list[str]] = lambda path: [],
) -> list[Found]:
    """Say each error of pydantic in one sentence; errors of the members of a union become one.

    data: what was validated.  known_keys: path of a mapping -> the keys it may have.  elsewhere: path of an unknown key
    -> where else it may stand.
    """
    found: list[Found] = []
    expected: dict[Path, list[str]] = {}
    lines = error.errors(include_url=False)
    if len(lines) > MOST_PROBLEMS:
        found.append(((), "value", f"{len(lines):,} problems; the first {MOST_PROBLEMS} follow"))
    for line in lines[:MOST_PROBLEMS]:
        path, kind, context = clean_path(line["loc"], data), line["type"], line.get("ctx", {})
        if kind in ("too_short", "too_long") and value_at(data, path) and any(path == f[0][: len(path)] for f in found):
            continue  # pydantic counts only valid entries, and has reported the others already
        if line["loc"][-1:] == ("[key]",):
            found.append((path, "key", _mismatch([_EXPECTED[kind].format(**context)], path[-1])))
        elif kind == "extra_forbidden":
            why = REMOVED.get(path) or unknown("key", path[-1], known_keys(path[:-1]), elsewhere(path))
            found.append((path, "key", why))
        elif kind == "missing" and isinstance(line["loc"][-1], int):
            found.append((path, "value", f"is too short: it has no entry {line['loc'][-1]}, counted from 0"))
        elif kind == "missing":
            found.append(((*path[:-1], line["loc"][-1]), "value", "is required"))
        elif kind == "union_tag_not_found":
            found.append(((*path, context["discriminator"].strip("'")), "value", "is required"))
        elif kind == "union_tag_invalid":
            tag = context["discriminator"].strip("'")
            members = [member.strip(" '") for member in context["expected_tags"].split(",")]
            value = value_at(data, (*path, tag))
            why = unknown(tag, value, members) if isinstance(value, str) else _mismatch([", ".join(members)], value)
            found.append(((*path, tag), "value", why))
        elif kind in ("too_short", "too_long"):
            bound = (
                f"at least {context.get('min_length')}" if kind == "too_short" else f"at most {context['max_length']}"
            )
            found.append((path, "value", f"must have {bound} entries; found {context['actual_length']}"))
        elif kind in _EXPECTED:
            if path not in expected:
                found.append((path, "value", ""))  # filled in below, in its place
            bounds = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
            words = _EXPECTED[kind].format(**bounds)
            if words not in expected.setdefault(path, []):
                expected[path].append(words)
        elif kind == "schedule":
            found.append(((*path, *context["where"].path), context["where"], line["msg"]))
        else:
            found.append((path, "value", str(context["error"]) if kind == "value_error" else line["msg"]))
    return [(path, at, why or _mismatch(expected[path], value_at(data, path))) for path, at, why in found]


def _mismatch(expected: list[str], value: Any) -> str:
    near = ""
    if isinstance(value, str):
        words = [word.strip("'") for text in expected for word in text.replace(" or ", ", ").split(", ")]
        near = "." + hint if (hint := did_you_mean(value, words)) else ""
    return f"must be {' or '.join(expected)}; found {shorten(value)}{near}"


def clean_path(loc: Iterable, data: Any) -> Path:
    """The path of the key in the recipe: pydantic also names the member of a union, which is no key."""
    path: Path = ()
    tag_passed = False
    for part in loc:
        is_tag = isinstance(data, dict) and any(data.get(tag) == part for tag in UNION_TAGS)
        if part == "[key]" or (is_tag and not tag_passed):
            tag_passed = True
        elif isinstance(data, dict):
            path, data, tag_passed = (*path, part), data.get(part), False
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            path, data, tag_passed = (*path, part), data[part], False
    return path


def value_at(data: Any, path: Path) -> Any:
    """The value at a path, None where there is none."""
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def locate(found: Found, root: Node) -> Problem:
    """Give a problem its file, line and column: those of the nearest key that is written."""
    path, at, message = found
    node, reached = root, 0
    for part in path:
        children = node.value
        if isinstance(children, list):
            inside = isinstance(part, int) and part < len(children)
        else:
            inside = isinstance(children, dict) and part in children
        if not inside:
            break
        node, reached = children[part], reached + 1
    whole = reached == len(path)
    place = node.place
    on_key = at == "key" or (isinstance(at, Where) and at.on_key)
    if node.key is not None and (on_key or not whole):
        place = node.key
    column = place.column
    if whole and isinstance(at, Where) and at.offset is not None and node.verbatim and column is not None:
        column += at.offset
    # `of: local` is read as a list of one: its place in there was never written, and is left out of the key.
    unwritten = (part for part in path[reached:] if isinstance(part, str) or not isinstance(at, Where))
    shown = (*path[:reached], *unwritten)
    return Problem(message, place.file, place.line, column, key_suffix(shown).lstrip(".") or None)
