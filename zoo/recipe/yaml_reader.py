"""YAML with a place for every value: files, `extends`, and `--set`, read into one tree of nodes.

Only plain data is read: tags and duplicate keys are refused, and what aliases expand to is limited. Plain words follow
YAML 1.2 (true and false are the booleans; yes and no are text), and `1e-3` is a number.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import yaml

from zoo.errors import Problem, RecipeError, did_you_mean, shorten
from zoo.files import FileError, read_bytes
from zoo.recipe import shipped
from zoo.recipe.seal import in_run_folder, must_be_sealed, seal_problem

MAX_BYTES = 2_000_000
MAX_DEPTH = 100
MAX_NODES = 100_000  # as written, and after aliases are expanded; the longest schedule has 10,000 entries
MAX_EXTENDS = 20
_SHAPE = "a recipe is a mapping with the keys name, model, data, train"

_INT = re.compile(r"[-+]?[0-9][0-9_]{0,60}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")
_WORDS = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"]),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
    **dict.fromkeys([".inf", ".Inf", ".INF", "+.inf"], float("inf")),
    **dict.fromkeys(["-.inf", "-.Inf", "-.INF"], float("-inf")),
    **dict.fromkeys([".nan", ".NaN", ".NAN"], float("nan")),
}


class Place(NamedTuple):
    """Where something was written; a value from `--set` has no line."""

    file: str
    line: int | None = None
    column: int | None = None


@dataclass(slots=True)
class Node:
    """A value with its place and that of its key. `value` is a scalar, a dict of nodes, or a list of nodes.

    `verbatim` says that the text in the file is the value itself, character for character, from `place` on.
    """

    value: Any
    place: Place
    key: Place | None = None
    verbatim: bool = False

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value


if TYPE_CHECKING:
    _Base = yaml.SafeLoader
else:
    _Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """Every scalar stays text; `scalar` below says what a plain one means."""


_Loader.yaml_implicit_resolvers = {}


def scalar(text: str) -> Any:
    """What a word without quotes means: null, a boolean, a number, or text.

    A whole number may be written with an exponent or underscores: `15e9` and `15_000_000_000` are the same integer.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if len(text) <= 60 and _FLOAT.fullmatch(text):
        value = float(text.replace("_", ""))
        return int(value) if "." not in text and value.is_integer() else value
    return text


def read_recipe(path: str | os.PathLike | Mapping, overrides: Iterable[str] = (), *, shape: str = _SHAPE) -> Node:
    """Read a file, all it extends, and the `key.path=value` overrides, into one tree.

    path: of a file, or a name of the package's recipes, `zoo:tiny/full`, or the content as a mapping of plain values;
    what a mapping extends is relative to the working directory.
    shape: what the top of the file must be, for the message.  Raises RecipeError with the places of the mistakes.
    """
    if isinstance(path, Mapping):
        root = _over_base(tree(path), "", [], shape)
    elif isinstance(path, str | os.PathLike):
        root = _read_chain(os.fspath(path), [], shape=shape)
    else:
        what = "the path or the name of a recipe, a mapping with its content, or a Recipe"
        raise RecipeError([Problem(f"must be {what}; found {shorten(path)}", key="recipe")])
    problems: list[Problem] = []
    for override in [overrides] if isinstance(overrides, str) else overrides:
        try:
            _assign(root, override)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return root


def _read_chain(path: str, below: list[str], extends: Node | None = None, shape: str = _SHAPE) -> Node:
    """The tree of a file merged over the files it extends; `below` are the files that led here."""

    def refuse(message: str):
        where = Problem(message, path) if extends is None else _problem(extends.place, message, "extends")
        raise RecipeError([where])

    if shipped.is_name(path):
        path = shipped.find(path) or refuse(shipped.unknown(path))
    text = _read_file(path, "" if extends is None else f": {path}", refuse)
    real = os.path.realpath(path)
    if real in map(os.path.realpath, below):
        refuse(f"extends in a circle: {' -> '.join([*below, path])}")
    if len(below) > MAX_EXTENDS:
        refuse(f"more than {MAX_EXTENDS} files extend each other")
    if in_run_folder(path) and (why := seal_problem(text, required=must_be_sealed(path))):
        refuse(why if extends is None else f"{path}: {why}")
    return _over_base(read_text(text, path, shape=shape), path, below, shape)


def _over_base(root: Node, path: str, below: list[str], shape: str) -> Node:
    """The tree of the file at `path`, merged over what it extends."""
    base = root.value.pop("extends", None)
    if base is None:
        return root
    if not isinstance(base.value, str) or not base.value:
        raise RecipeError(
            [_problem(base.place, f"must be the path of a recipe; found {shorten(base.plain())}", "extends")]
        )
    return merge(_read_chain(beside(path, base.value), [*below, path], base, shape), root)


def tree(values: Any, file: str = "recipe", depth: int = 0) -> Node:
    """Plain Python values as a tree without lines.  file: what messages call it.

    Raises RecipeError for what no recipe can hold: other types, keys that are no text, and nesting without an end.
    """
    place = Place(file)
    if depth > MAX_DEPTH:
        raise RecipeError([Problem(f"nested deeper than {MAX_DEPTH}", file)])
    if isinstance(values, Mapping):
        for key in values:
            if not isinstance(key, str):
                raise RecipeError([Problem(f"a key must be text; found {shorten(key)}", file)])
        return Node({key: tree(value, file, depth + 1) for key, value in values.items()}, place, place)
    if isinstance(values, list | tuple):
        return Node([tree(value, file, depth + 1) for value in values], place, place)
    if isinstance(values, os.PathLike):
        values = os.fspath(values)
    if values is not None and not isinstance(values, bool | int | float | str):
        found = type(values).__name__
        raise RecipeError(
            [Problem(f"must hold mappings, lists, text, numbers, true, false and null; found {found}", file)]
        )
    return Node(values, place, place)


def beside(path: str | os.PathLike, name: str) -> str:
    """The file that a file at `path` names: relative to it, or a recipe of the package."""
    return name if shipped.is_name(name) else os.path.normpath(os.path.join(os.path.dirname(path), name))


def _read_file(path: str, which: str, refuse: Callable[[str], None]) -> str:
    try:
        data = read_bytes(path, MAX_BYTES)
    except FileError as error:
        if isinstance(error.__cause__, FileNotFoundError) and not os.path.islink(path):
            refuse(f"no such file{which}.{_did_you_mean(path)}")
        refuse(f"{str(error).removeprefix(f'{path}: ')}{which}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        message = f"not UTF-8 text: byte 0x{data[error.start]:02x}; save the file as UTF-8"
        raise RecipeError([Problem(message, path, line, column)]) from error


def _did_you_mean(path: str) -> str:
    """A suggestion for a file that is missing: the package's recipe of this name, else a similar one in its folder."""
    if name := shipped.meant(path):
        return f" The recipe of this name in the package is {name}."
    return did_you_mean(Path(path).name, _recipes_beside(path))


def _recipes_beside(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return [name for name in os.listdir(Path(path).parent) if name.endswith((".yaml", ".yml"))]
    return []


def read_mapping(path: str | os.PathLike) -> Node:
    """Read one YAML file of a run folder whose top is a mapping, with the limits of a recipe and its checksum.

    Raises RecipeError with the place of the mistake.
    """

    def refuse(message: str):
        raise RecipeError([Problem(message, os.fspath(path))])

    text = _read_file(os.fspath(path), "", refuse)
    if why := seal_problem(text):
        refuse(why)
    return read_text(text, os.fspath(path))


def read_text(text: str, file: str, overriding: bool = False, shape: str = _SHAPE) -> Node:
    """Read YAML text into a tree.

    overriding: the text is a value of `--set`: it may be anything, and has no lines.  shape: as for `read_recipe`.
    """
    try:
        _check_events(text, file, overriding)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise RecipeError([_yaml_problem(error, text, file, overriding)]) from error
    except UnicodeEncodeError as error:  # an argument of the command line whose bytes were no text
        raise RecipeError([Problem("not UTF-8 text", file)]) from error
    except yaml.reader.ReaderError as error:
        line = None if overriding else text.count("\n", 0, error.position) + 1
        message = f"not text that YAML allows: {error.reason} at character {error.position + 1}"
        raise RecipeError([Problem(message, file, line)]) from error
    if node is None:
        if overriding:
            return Node(None, Place(file))
        raise RecipeError([Problem(f"the file is empty; {shape}", file)])
    tree = _Builder(file, overriding).build(node)
    if not overriding and not isinstance(tree.value, dict):
        message = f"{shape}; found {shorten(tree.plain())}"
        raise RecipeError([_problem(tree.place, message)])
    return tree


def _check_events(text: str, file: str, overriding: bool):
    """Refuse tags, and nesting that would exhaust a recursive composer, before anything is built."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if count > MAX_NODES:
            raise RecipeError([Problem(f"more than {MAX_NODES:,} keys and values", file)])
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        place = Place(file) if overriding else _at(file, event.start_mark)
        if depth > MAX_DEPTH:
            raise RecipeError([_problem(place, f"nested deeper than {MAX_DEPTH}")])
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise RecipeError([_problem(place, f"tags are not used in recipes; found {shorten(tag)}")])


def _at(file: str, mark: Any) -> Place:
    return Place(file, mark.line + 1, mark.column + 1)


def _yaml_problem(error: yaml.MarkedYAMLError, text: str, file: str, overriding: bool) -> Problem:
    mark = error.problem_mark or error.context_mark
    context = f" {error.context}" if error.context else ""
    message = f"not valid YAML: {error.problem}{context}"
    lines = text.split("\n")
    if mark is not None and mark.line < len(lines) and lines[mark.line][mark.column : mark.column + 1] == "\t":
        message = "a tab is not allowed here; indent with spaces"
    return _problem(Place(file) if overriding or mark is None else _at(file, mark), message)


class _Builder:
    """Turns composed YAML nodes into a tree of ours, with aliases and merge keys expanded."""

    def __init__(self, file: str, overriding: bool):
        self.file, self.overriding = file, overriding
        self.count = 0
        self.open: set[int] = set()

    def place(self, node: yaml.Node) -> Place:
        if self.overriding:
            return Place(self.file)
        return _at(self.file, node.start_mark)

    def refuse(self, node: yaml.Node, message: str, key: str | None = None) -> NoReturn:
        raise RecipeError([_problem(self.place(node), message, key)])

    def build(self, node: yaml.Node, key: Place | None = None) -> Node:
        self.count += 1
        if self.count > MAX_NODES:
            self.refuse(node, f"aliases expand this to more than {MAX_NODES:,} values")
        if isinstance(node, yaml.ScalarNode):
            value = scalar(node.value) if not node.style else node.value
            one_line = node.start_mark.line == node.end_mark.line and not node.style
            return Node(value, self.place(node), key, verbatim=one_line and not self.overriding)
        if id(node) in self.open:
            self.refuse(node, "an alias stands inside its own anchor")
        if len(self.open) > MAX_DEPTH:
            self.refuse(node, f"nested deeper than {MAX_DEPTH}")
        self.open.add(id(node))
        value = self.mapping(node) if isinstance(node, yaml.MappingNode) else [self.build(item) for item in node.value]
        self.open.remove(id(node))
        return Node(value, self.place(node), key)

    def mapping(self, node: yaml.MappingNode) -> dict[str, Node]:
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        for key, value in node.value:
            name: str | None = key.value if isinstance(key, yaml.ScalarNode) else None
            if name == "<<" and not key.style:
                for source in self.merge_sources(value):
                    merged = {**source, **merged}
                continue
            if name is None or (not key.style and not isinstance(scalar(name), str)):
                self.refuse(key, f"a key must be text; found {shorten(name)}" if name else "a key must be text")
            if (before := own.get(name)) is not None and before.key is not None:
                self.refuse(key, f"the key {shorten(name)} is given twice; first in line {before.key.line}")
            own[name] = self.build(value, self.place(key))
        return {**merged, **own}

    def merge_sources(self, node: yaml.Node) -> list[dict[str, Node]]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self.refuse(source, "'<<' takes a mapping, or a list of mappings")
        return [self.build(source).value for source in sources]


def merge(base: Node, over: Node) -> Node:
    """Lay one tree over another: mappings merge key by key, everything else is replaced.

    A mapping that states another `kind` than the one below it replaces that whole: the fields of one kind mean nothing
    to another.
    """
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    kinds = [node.value["kind"].value if "kind" in node.value else None for node in (base, over)]
    if kinds[1] is not None and kinds[0] != kinds[1]:
        return over
    value = dict(base.value)
    for key, node in over.value.items():
        value[key] = merge(value[key], node) if key in value else node
    return Node(value, over.place, over.key)


def _assign(root: Node, override: str):
    """Put `a.b.c=value` into the tree; the value is YAML, a number names an entry of a list."""
    source = f"--set {override}"
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError([Problem("must be key.path=value, such as train.duration=100ba", source)])
    if keys == ["extends"]:
        raise RecipeError([Problem("extends can only be written in a file", source)])
    value = read_text(text, source, overriding=True)
    value.key = Place(source)
    put(root, keys, value)


def put(root: Node, keys: list[str], value: Node, merging: bool = False) -> None:
    """Put a value into the tree at `keys`, of which a number names an entry of a list.

    merging: a mapping is merged with the one that is there, as `extends` does it; otherwise the value replaces it.
    Raises RecipeError at the value's place if the path leads through something that is no mapping or list.
    """
    place = value.key or value.place
    node = root
    for depth, written in enumerate(keys):
        key: Any = written  # the number of an entry, where it stands for one
        last, above = depth == len(keys) - 1, ".".join(keys[:depth])
        if isinstance(node.value, list):
            if not re.fullmatch("[0-9]{1,6}", key) or int(key) >= len(node.value):
                message = f"must be the number of an entry, from 0 to {len(node.value) - 1}; found {key!r}"
                raise RecipeError([_problem(place, message, above)])
            key = int(key)
        elif not isinstance(node.value, dict):
            message = f"is {shorten(node.value)}, which has no key {key!r}"
            raise RecipeError([_problem(place, message, above)])
        if last:
            known = isinstance(key, int) or key in node.value
            node.value[key] = merge(node.value[key], value) if merging and known else value
        elif isinstance(node.value, dict) and (key not in node.value or node.value[key].value is None):
            node.value[key] = Node({}, place, place)
        node = node.value[key]


def _problem(place: Place, message: str, key: str | None = None) -> Problem:
    return Problem(message, place.file, place.line, place.column, key)
