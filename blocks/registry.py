"""Families of parts: the names that a recipe may write for `kind`, and where their config classes live. No torch.

A family is looked up lazily: a class is imported when its name is used. Another package adds a part with an entry point
of the group `zoo.<family>`, name = kind, value = "module:ConfigClass"; a module named in a recipe's `plugins:` adds one
with `register`. The zoo's own names cannot be taken.
"""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from zoo.blocks.plugins import offers


def load(target: str) -> Any:
    """The object at "package.module:name"; imports the module."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


@dataclass(eq=False)
class Family:
    """One family of parts.

    name: its plural, as in `zoo parts NAME`.  what: one part of it, as messages say it.  base: the class that every
    config of it subclasses, "module:Class".  own: kind -> "module:Class".  groups: of entry points.
    default: the kind that stands for none.  tag: the field that names the kind, `kind` but for evaluation tasks.
    or_methods: those which a config may define itself instead of naming what runs by `module`.
    states: class attributes that every config of it sets.
    """

    name: str
    what: str
    base: str
    own: dict[str, str]
    summary: str
    groups: tuple[str, ...] = ()
    default: str | None = None
    tag: str = "kind"
    or_methods: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    _offers: tuple[dict[str, str], dict[str, str]] | None = field(default=None, repr=False)
    _built_in: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.groups = self.groups or (f"zoo.{self.name}",)
        self._built_in = frozenset(self.own)

    @property
    def base_class(self) -> type:
        return load(self.base)

    def installed(self) -> tuple[dict[str, str], dict[str, str]]:
        """(kind -> target of what installed packages offer, kind -> why an offer is refused).

        A name of the zoo's own, or one offered twice for different classes, is refused.
        """
        if self._offers is None:
            found: dict[str, str] = {}
            refused: dict[str, str] = {}
            for entry in (entry for group in self.groups for entry in offers().get(group, ())):
                taken = self.own.get(entry.name) or found.get(entry.name, entry.value)
                if taken != entry.value:
                    refused[entry.name] = f"is offered by {entry.value} and by {taken}; uninstall one"
                else:
                    found[entry.name] = entry.value
            self._offers = {kind: target for kind, target in found.items() if kind not in refused}, refused
        return self._offers

    def forget_installed(self) -> None:
        """Look at the installed packages anew when they are next asked for."""
        self._offers = None
        offers.cache_clear()

    def register(self, kind: str, target: str) -> None:
        """Add a kind for this process. target: "module:ConfigClass", imported at the first look-up."""
        if kind in self.own and self.own[kind] != target:
            raise ValueError(f"{self.what} {kind!r} is taken by {self.own[kind]}; found {target}")
        self.own[kind] = target

    def of_others(self) -> list[str]:
        """The targets of what plugins registered, and of what packages offer if they were searched already."""
        registered = [target for kind, target in self.own.items() if kind not in self._built_in]
        return [*registered, *(self._offers[0].values() if self._offers else ())]

    def kinds(self) -> list[str]:
        """Every known kind, the zoo's own first."""
        return [*self.own, *(kind for kind in self.installed()[0] if kind not in self.own)]

    def knows(self, kind: str) -> bool:
        """Whether the name is that of a kind, usable or not; the zoo's own need no look at what is installed."""
        return kind in self.own or kind in self.installed()[0] or kind in self.installed()[1]

    def expected(self) -> str:
        """The names of all kinds, as a choice of words: 'a', 'b' or 'c'."""
        known = [repr(name) for name in self.kinds()]
        return " or ".join([", ".join(known[:-1]), known[-1]] if known[1:] else known)

    def config_class(self, kind: str) -> Any:
        """The config class of a kind.

        Raises ValueError naming the known kinds, and the nearest, if there is none; or what failed if its module does.
        """
        target = self.own.get(kind) or self.installed()[0].get(kind)  # the zoo's own need no look at what is installed
        if target is None and kind in self.installed()[1]:
            raise ValueError(f"{self.what} {kind!r} {self.installed()[1][kind]}")
        if target is None:
            known = self.kinds()
            near = difflib.get_close_matches(str(kind), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown {self.what} {kind!r}; known: {', '.join(known)}.{hint}")
        try:
            made = load(target)
        except (Exception, SystemExit) as error:  # a module of another package can raise anything while it is imported
            raise ValueError(f"{self.what} {kind!r} cannot be loaded from {target}: {error}") from error
        self._check_class(kind, target, made)
        return made

    def _check_class(self, kind: str, target: str, made: object) -> None:
        """Raise ValueError unless it is a config of this family that calls itself by the name it is offered under."""
        if not (isinstance(made, type) and issubclass(made, self.base_class)):
            raise ValueError(f"{self.what} {kind!r}: {target} must be a subclass of {self.base.replace(':', '.')}")
        if kind not in self.own:
            self._check_name(kind, made)
        if kind in self._built_in:
            return
        place = f"{made.__module__}:{made.__qualname__}"
        if self._lacks_module(made):
            methods = f", or define {' and '.join(self.or_methods)}" if self.or_methods else ""
            raise ValueError(
                f"{self.what} {kind!r}: {place} must name what runs, "
                f'module: ClassVar[str] = "package.module:Name"{methods}'
            )
        if missing := [name for name in self.states if not getattr(made, name, None)]:
            raise ValueError(f"{self.what} {kind!r}: {place} must state {', '.join(missing)}")

    def _lacks_module(self, made: Any) -> bool:
        """Whether a config of another package has to name what runs, and does not.

        Its bases of the zoo say whether that has to be named; one that is a kind itself has what runs.
        """
        if getattr(made, "module", None):
            return False
        ours = [base for base in made.__mro__ if base.__module__.startswith("zoo.")]
        if not any("module" in vars(base).get("__annotations__", ()) for base in ours):
            return False
        fields = [base.model_fields[self.tag] for base in ours if self.tag in getattr(base, "model_fields", ())]
        stated = any("module" in vars(base) for base in made.__mro__ if base not in ours)  # as None: nothing runs
        if stated or any(get_args(field.annotation) for field in fields):
            return False
        base = self.base_class
        return not self.or_methods or any(getattr(made, name) is getattr(base, name) for name in self.or_methods)

    def _check_name(self, kind: str, made: Any) -> None:
        """Raise ValueError unless the config's `kind` has the name as its default, or as the one value it may have."""
        field = made.model_fields[self.tag]
        required = kind in self.own and field.is_required()
        if field.default != kind and not (required and kind in get_args(field.annotation)):
            place = f"{made.__module__}:{made.__qualname__}"
            found = "none" if field.is_required() else repr(field.default)
            why = f"{place} must have the default {self.tag} {kind!r}; found {found}"
            raise ValueError(f"{self.what} {kind!r}: {why}")

    def classes(self) -> Iterator[tuple[str, Any]]:
        """(kind, config class) of every known kind that loads; imports them all. `broken` says what is left out."""
        for kind in self.kinds():
            try:
                yield kind, self.config_class(kind)
            except ValueError:
                continue

    def broken(self) -> dict[str, str]:
        """What other packages and plugins bring and cannot be used, by name: the reason. Imports what they bring."""
        found, refused = self.installed()
        reasons = {kind: f"{self.what} {kind!r} {why}" for kind, why in refused.items()}
        for kind in dict.fromkeys([*found, *(kind for kind in self.own if kind not in self._built_in)]):
            try:
                self.config_class(kind)
            except ValueError as error:
                reasons[kind] = str(error)
        return reasons

    def read(self, value: Any, as_json: bool) -> Any:
        """The config that a mapping with a `kind` describes. Raises pydantic's ValidationError, as a union would.

        as_json: check types as strictly as in JSON, where lists stand for tuples.
        """
        if isinstance(value, self.base_class):
            return value
        if not isinstance(value, dict):
            raise refusal("dict_type", (), value)
        kind, tag = value.get(self.tag, self.default), f"'{self.tag}'"
        if kind is None:
            raise refusal("union_tag_not_found", (), value, discriminator=tag)
        if not isinstance(kind, str) or not self.knows(kind):
            if self.default is not None:
                raise refusal("literal_error", (self.tag,), kind, expected=self.expected())
            known = ", ".join(repr(name) for name in self.kinds())
            raise refusal("union_tag_invalid", (), value, discriminator=tag, tag=str(kind), expected_tags=known)
        try:
            config = self.config_class(kind)
            self._check_name(kind, config)
        except ValueError as error:
            raise refusal(PydanticCustomError("part", "{why}", {"why": str(error)}), (self.tag,), value) from error
        given = {self.tag: kind, **value}
        if as_json:
            return config.model_validate_json(json.dumps(given), strict=True)
        return config.model_validate(given)


def refusal(error: Any, path: tuple, value: Any, **context: Any) -> ValidationError:
    """An error of pydantic at a path inside the value that is read.  error: its type, or a PydanticCustomError."""
    details = InitErrorDetails(type=error, loc=path, input=value, ctx=context)
    return ValidationError.from_exception_data("part", [details])


class PartOf:
    """Annotation of a field that holds a part: `Annotated[PatternConfig, PartOf(PATTERNS)]`.

    The kind is looked up when a recipe is read, so that parts of other packages are known like the zoo's own.
    """

    def __init__(self, family: Family):
        self.family = family

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        read = self.family.read
        return core_schema.with_info_plain_validator_function(lambda value, info: read(value, info.mode == "json"))

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        """The union of all parts that are known when it is asked for."""
        found = union_of(self.family, handler)
        return found if self.family.default is None else {**found, "default_kind": self.family.default}


class NameOf:
    """Annotation of a field that holds the name of a part without fields: `Annotated[str, NameOf(LOGGERS)]`."""

    def __init__(self, family: Family):
        self.family = family

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: Any) -> dict[str, Any]:
        return {"type": "string", "enum": self.family.kinds()}

    def _check(self, name: Any) -> str:
        if not isinstance(name, str) or not self.family.knows(name):
            raise refusal("literal_error", (), name, expected=self.family.expected())
        try:
            self.family.config_class(name)
        except ValueError as error:
            raise refusal(PydanticCustomError("part", "{why}", {"why": str(error)}), (), name) from error
        return name


def union_of(family: Family, handler: Any) -> dict[str, Any]:
    """The JSON Schema of any part of a family, by pydantic's handler of JSON Schemas."""
    choices = {kind: _named(config) for kind, config in family.classes()}
    return handler(core_schema.tagged_union_schema(choices, family.tag))


def _named(config: Any) -> Any:
    """pydantic's schema of a config under a name, so that JSON Schema refers to it and holds it once."""
    config.model_rebuild()  # made at first use
    return {**config.__pydantic_core_schema__, "ref": f"{config.__module__}.{config.__qualname__}:{id(config)}"}


MIXERS = Family(
    "mixers",
    "block kind",
    "zoo.blocks.config:BlockConfig",
    {
        "attention": "zoo.blocks.config:AttentionConfig",
        "full": "zoo.blocks.kinds.full:FullConfig",
        "window": "zoo.blocks.kinds.window:WindowConfig",
        "chunked": "zoo.blocks.kinds.chunked:ChunkedConfig",
        "mla": "zoo.blocks.kinds.mla:MLAConfig",
        "gla": "zoo.blocks.kinds.gla:GLAConfig",
        "nsa": "zoo.blocks.kinds.nsa:NSAConfig",
        "ansa": "zoo.blocks.kinds.ansa:AnsaConfig",
        "gated_linear": "zoo.blocks.kinds.gated_linear:GatedLinearConfig",
        "lightning": "zoo.blocks.kinds.lightning:LightningConfig",
        "gated_deltanet": "zoo.blocks.kinds.gated_deltanet:GatedDeltaNetConfig",
        "kda": "zoo.blocks.kinds.kda:KDAConfig",
        "mamba2": "zoo.blocks.kinds.mamba2:Mamba2Config",
    },
    "What mixes the tokens in a layer: `model.blocks.NAME`.",
    groups=("zoo.mixers", "zoo.blocks"),
)
PROJECTIONS = Family(
    "projections",
    "projection",
    "zoo.blocks.projections.base:ProjectionConfig",
    {
        "gqa": "zoo.blocks.projections.gqa_config:GQA",
        "mla": "zoo.blocks.projections.latent_config:MLA",
        "gla": "zoo.blocks.projections.latent_config:GLA",
    },
    "How queries, keys and values are made: `projection` of a block of kind attention.",
)
PATTERNS = Family(
    "patterns",
    "pattern",
    "zoo.blocks.patterns.base:PatternConfig",
    {
        "full": "zoo.blocks.patterns.full_config:Full",
        "window": "zoo.blocks.patterns.window_config:Window",
        "compression": "zoo.blocks.patterns.compression_config:Compression",
        "selection": "zoo.blocks.patterns.selection_config:Selection",
        "dilated": "zoo.blocks.patterns.dilated_config:Dilated",
        "moba": "zoo.blocks.patterns.moba_config:MoBA",
        "chunked": "zoo.blocks.patterns.chunked_config:Chunked",
    },
    "Which keys a query sees: `patterns` of a block of kind attention.",
)
POSITIONS = Family(
    "positions",
    "position embedding",
    "zoo.blocks.positions.base:PositionConfig",
    {
        "rotary": "zoo.blocks.positions.rotary_config:Rotary",
        "none": "zoo.blocks.positions.none_config:NoPosition",
    },
    "How queries and keys know their position: `position` of a block.",
)
FAMILIES = {family.name: family for family in (MIXERS, PROJECTIONS, PATTERNS, POSITIONS)}


def register(kind: str, target: str, family: str = "mixers") -> None:
    """Add a kind to a family for this process. target: "module:ConfigClass", imported at the first look-up.

    Raises ValueError if the family is unknown or the zoo or another package has the name already.
    """
    if family not in FAMILIES:
        import_module("zoo.parts")  # the families of zoo's own rooms, which a plugin may name before anything read them
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    FAMILIES[family].register(kind, target)


def kinds() -> list[str]:
    """Every known kind of block, the zoo's own first."""
    return MIXERS.kinds()


def config_class(kind: str) -> Any:
    """The config class of a kind of block; as `Family.config_class`."""
    return MIXERS.config_class(kind)


def block_kinds() -> Iterator[tuple[str, Any]]:
    """(kind, config class) of every known kind of block that loads; imports them all."""
    return MIXERS.classes()


def broken() -> dict[str, str]:
    """Blocks that other packages and plugins bring and that cannot be used, by name: the reason."""
    return MIXERS.broken()
