"""The layer schedule: which block each layer uses. One grammar in two spellings that mean the same.

String:  `full (local*3 global)*5 local*2 full`. Names are separated by spaces or commas; `x*3` repeats; parentheses
         group; a `...` at the very end repeats the whole pattern until `n_layers` is reached, which must come out
         even; with `... cut` the last repetition is cut short where it does not.
List:    `[full, {repeat: 5, of: [{repeat: 3, of: [local]}, global]}, {use: local, with: {window: 1024}}]`.
         A string in a list is read with the string grammar, a list in a list is a group, `...` or `... cut` may be
         the last entry.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from zoo.errors import Problem, RecipeError, shorten, unknown

MAX_LAYERS = 10_000
MAX_DEPTH = 64
DOTS, CUT = "...", "cut"
_TOO_LONG = f"the schedule expands past {MAX_LAYERS:,} layers"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
USE = re.compile(rf"({NAME.pattern})(?:\.({NAME.pattern}))?")
_TOKEN = re.compile(
    rf"\s*\*\s*(?P<times>[0-9]+)|[\s,]+|(?P<dots>\.\.\.)|(?P<use>{USE.pattern})|(?P<open>\()|(?P<close>\))", re.ASCII
)


@dataclass(frozen=True)
class Where:
    """A place inside a schedule: the path into its list spelling, and the offset in the string there, or the key."""

    path: tuple[str | int, ...] = ()
    offset: int | None = None
    on_key: bool = False


@dataclass(frozen=True)
class Use:
    """One occurrence of a block: `name`, or `name.part`, with the fields that `with` overrides for it."""

    name: str
    part: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    where: Where = field(default=Where(), compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.name}.{self.part}" if self.part else self.name


@dataclass(frozen=True)
class Repeat:
    """Items repeated two times or more; a group that is not repeated is spliced into its surroundings."""

    times: int
    of: tuple["Use | Repeat", ...]


@dataclass(frozen=True)
class Schedule:
    """A parsed schedule; `fills` says that it ends with `...`, `cuts` that it ends with `... cut`."""

    items: tuple[Use | Repeat, ...]
    fills: bool = False
    cuts: bool = False

    @property
    def ending(self) -> list[str]:
        """What stands behind the pattern."""
        return [f"{DOTS} {CUT}"] if self.cuts else [DOTS] * self.fills

    @property
    def uses(self) -> list[Use]:
        """The places where a block is named, each once."""
        return list(_walk(self.items))

    def __str__(self) -> str:
        spelling = format_schedule(self)
        return spelling if isinstance(spelling, str) else repr(spelling)


class ScheduleError(RecipeError):
    """A schedule that cannot be read or expanded.

    `found` holds (where, message) pairs, for a caller that knows the file the schedule stands in.
    """

    def __init__(self, found: list[tuple[Where, str]]):
        self.found = found
        problems = []
        for where, message in found:
            at = "" if where.offset is None else f" (character {where.offset + 1})"
            problems.append(Problem(message + at, key="layers" + key_suffix(where.path)))
        super().__init__(problems)


def key_suffix(path: Iterable[str | int]) -> str:
    """Write a path below a key: `('of', 2)` is `.of[2]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def parse(spelling: str | list) -> Schedule:
    """Read a schedule in either spelling, in time linear in its length.

    Raises ScheduleError (a RecipeError) with every problem found. A schedule that would expand past 10,000 layers, or
    nests deeper than 64, is refused before anything is expanded.
    """
    found: list[tuple[Where, str]] = []
    try:
        if isinstance(spelling, str):
            items, fills, cuts = _parse_string(spelling, Where(), MAX_DEPTH)
        else:
            items, fills, cuts = _parse_list(spelling, (), MAX_DEPTH, found)
        if not items and not found:
            raise ScheduleError([(Where(), "the schedule is empty; name at least one block")])
        if not found:
            _check_length(items, Where())
    except ScheduleError as error:
        found += error.found
    if found:
        raise ScheduleError(found)
    return Schedule(items, fills, cuts)


def _parse_string(text: str, where: Where, depth: int) -> tuple[tuple[Use | Repeat, ...], bool, bool]:
    """(items, fills, cuts), as of Schedule.

    Parsed with an explicit stack of open groups; each group is a list of operands, each operand a tuple of items.
    """
    groups: list[list[tuple]] = [[]]
    opened: list[int] = []
    position, named, fills, cuts, repeatable = 0, 0, False, False, False

    def refuse(message: str, offset: int | None = None) -> NoReturn:
        raise ScheduleError([(Where(where.path, position if offset is None else offset), message)])

    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            refuse(_unreadable(text, position))
        if fills and not cuts and token["use"] == CUT:
            cuts, position = True, token.end()
            continue
        if fills and not token[0].isspace():
            refuse("'...' must be the last thing in the schedule; only 'cut' may follow it")
        if token["use"]:
            named += 1
            if named > MAX_LAYERS:
                refuse(_TOO_LONG)
            name, _, part = token["use"].partition(".")
            groups[-1].append((Use(name, part or None, where=Where(where.path, position)),))
        elif token["open"]:
            if len(groups) > depth:
                refuse(f"parentheses nest deeper than {MAX_DEPTH}")
            groups.append([])
            opened.append(position)
        elif token["close"]:
            if not opened:
                refuse("')' without '('")
            start = opened.pop()
            items = _splice(groups.pop())
            if not items:
                refuse("the parentheses are empty; name at least one block", start)
            groups[-1].append(items)
        elif token["times"]:
            if not repeatable:
                refuse("a count must follow a name or a ')'")
            groups[-1][-1] = _repeat(groups[-1][-1], token["times"], Where(where.path, position))
        elif token["dots"]:
            if opened:
                refuse("'...' cannot stand inside parentheses; it ends the schedule")
            fills = True
        repeatable = bool(token["use"] or token["close"] or (repeatable and token[0].isspace()))
        position = token.end()
    if opened:
        refuse("'(' is never closed", opened[-1])
    return _splice(groups[0]), fills, cuts


def _unreadable(text: str, position: int) -> str:
    rest = text[position:].lstrip() or text[position:]
    if rest.startswith("*"):
        found = rest[1:].split(maxsplit=1)
        return f"a count after '*' must be a whole number from 1; found {shorten(found[0]) if found else 'nothing'}"
    if rest[0].isdigit():
        return f"expected a block name; found {shorten(rest.split(maxsplit=1)[0])}. To repeat, write name*3"
    return f"unexpected {shorten(rest[0])}; a schedule has names, '*' with a count, parentheses, and '...' at the end"


def _repeat(items: tuple, times: int | str, where: Where) -> tuple:
    # A text of digits is measured before it is converted: int() of a million digits takes long, or fails.
    if isinstance(times, str):
        digits = times.lstrip("0") or "0"
        times = int(digits) if len(digits) <= 6 else MAX_LAYERS + 1
    if times < 1:
        raise ScheduleError([(where, f"a repeat count must be at least 1; found {times}")])
    repeated = items if times == 1 else (Repeat(times, items),)
    _check_length(repeated, where)
    return repeated


def _splice(operands: list[tuple]) -> tuple[Use | Repeat, ...]:
    return tuple(item for operand in operands for item in operand)


def _parse_list(entries: object, path: tuple, depth: int, found: list) -> tuple[tuple[Use | Repeat, ...], bool, bool]:
    """(items, fills, cuts), as of Schedule; problems are added to `found`."""
    if not isinstance(entries, list | tuple):
        raise ScheduleError([(Where(path), f"must be a schedule string or a list; found {shorten(entries)}")])
    if depth == 0:
        raise ScheduleError([(Where(path), f"lists nest deeper than {MAX_DEPTH}")])
    if len(entries) > MAX_LAYERS + 1:
        raise ScheduleError([(Where(path), _TOO_LONG)])
    entries, fills, cuts = _without_ending(list(entries)) if not path else (entries, False, False)
    operands = []
    for index, entry in enumerate(entries):
        here = (*path, index)
        try:
            operands.append(_parse_entry(entry, here, depth - 1, found))
        except ScheduleError as error:
            found += error.found
    return _splice(operands), fills, cuts


def _without_ending(entries: list) -> tuple[list, bool, bool]:
    """(the entries before `...`, `... cut` or `...` and `cut`, fills, cuts)."""
    if len(entries) > 1 and entries[-2:] == [DOTS, CUT]:
        return entries[:-2], True, True
    last = entries[-1].split() if entries and isinstance(entries[-1], str) else []
    if last in ([DOTS], [DOTS, CUT]):
        return entries[:-1], True, CUT in last
    return entries, False, False


def _parse_entry(entry: object, path: tuple, depth: int, found: list) -> tuple[Use | Repeat, ...]:
    if isinstance(entry, str):
        items, fills, _ = _parse_string(entry, Where(path), depth)
        if fills:
            raise ScheduleError([(Where(path), "'...' must be the last entry of the schedule")])
        if not items:
            raise ScheduleError([(Where(path), "this entry is empty; name a block")])
        return items
    if isinstance(entry, list | tuple):
        return _group(entry, 1, path, depth, found)
    if not isinstance(entry, dict):
        message = "must be a block name, a list, {repeat: 3, of: [...]} or {use: name, with: {...}}"
        raise ScheduleError([(Where(path), f"{message}; found {shorten(entry)}")])
    allowed = ("repeat", "of") if "repeat" in entry or "of" in entry else ("use", "with")
    for key in entry:
        if key not in allowed:
            found.append((Where((*path, key), on_key=True), unknown("key", key, allowed)))
    if "use" in allowed:
        return (_parse_use(entry, path),)
    times, of = entry.get("repeat"), entry.get("of")
    if isinstance(times, bool) or not isinstance(times, int):
        message = f"repeat must be a whole number from 1; found {shorten(times)}"
        raise ScheduleError([(Where((*path, "repeat")), message)])
    if times < 1:
        raise ScheduleError([(Where((*path, "repeat")), f"must be at least 1; found {times}")])
    return _group([of] if isinstance(of, str) else of, times, (*path, "of"), depth, found)


def _group(entries: object, times: int, path: tuple, depth: int, found: list) -> tuple[Use | Repeat, ...]:
    items, *_ = _parse_list(entries, path, depth, found)
    if not entries:
        raise ScheduleError([(Where(path), "this group is empty; name at least one block")])
    # Without items every entry has failed, and been reported.
    return _repeat(items, times, Where(path)) if items else ()


def _parse_use(entry: dict, path: tuple) -> Use:
    name = entry.get("use")
    match = USE.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise ScheduleError([(Where((*path, "use")), f"use must be one block name; found {shorten(name)}")])
    overrides = entry.get("with", {})
    if not isinstance(overrides, dict):
        message = f"with must be a mapping of fields to values; found {shorten(overrides)}"
        raise ScheduleError([(Where((*path, "with")), message)])
    return Use(match[1], match[2], overrides, Where((*path, "use")))


def _length(items: Iterable[Use | Repeat]) -> int:
    return sum(1 if isinstance(item, Use) else item.times * _length(item.of) for item in items)


def _check_length(items: tuple, where: Where):
    if _length(items) > MAX_LAYERS:
        raise ScheduleError([(where, _TOO_LONG)])


def _walk(items: Iterable[Use | Repeat]):
    for item in items:
        if isinstance(item, Use):
            yield item
        else:
            yield from _walk(item.of)


def _expanded(items: Iterable[Use | Repeat]) -> list[Use]:
    layers: list[Use] = []
    for item in items:
        layers += [item] if isinstance(item, Use) else _expanded(item.of) * item.times
    return layers


def expand(schedule: Schedule | str | list, n_layers: int | None = None, wanted: str = "n_layers is") -> list[Use]:
    """Return one Use for each layer, in order.

    n_layers: what the recipe says; a check when the schedule is complete, and needed when it ends with `...`.
    wanted: how a message says where that number is from.
    Raises ScheduleError if the two do not agree.
    """
    schedule = schedule if isinstance(schedule, Schedule) else parse(schedule)
    layers = _expanded(schedule.items)
    if schedule.fills:
        layers = _fill(layers, n_layers, schedule.cuts)
    if n_layers is not None and len(layers) != n_layers:
        raise ScheduleError([(Where(), f"the schedule has {len(layers)} layers, but {wanted} {n_layers}")])
    return layers


def _fill(pattern: list[Use], n_layers: int | None, cuts: bool) -> list[Use]:
    if n_layers is None:
        raise ScheduleError([(Where(), "'...' needs n_layers, the number of layers to fill")])
    times, rest = divmod(n_layers, len(pattern))
    if cuts and n_layers <= MAX_LAYERS:
        return (pattern * (times + 1))[:n_layers]
    if rest or times < 1 or n_layers > MAX_LAYERS:
        even = [count for count in (times * len(pattern), (times + 1) * len(pattern)) if 0 < count <= MAX_LAYERS]
        message = f"the pattern of {len(pattern)} layers does not come out even in {n_layers} layers"
        hint = f"n_layers of {' or '.join(map(str, even))} would; '... {CUT}' cuts the last repetition short"
        raise ScheduleError([(Where(), f"{message}; {hint}")])
    return pattern * times


def format_schedule(schedule: Schedule) -> str | list:
    """Write a schedule so that parsing gives the same again: a string, or a list if an occurrence has overrides."""
    if any(use.overrides for use in schedule.uses):
        return [_list_item(item) for item in schedule.items] + schedule.ending
    return " ".join([_string_item(item) for item in schedule.items] + schedule.ending)


def _list_item(item: Use | Repeat) -> str | dict:
    if isinstance(item, Repeat):
        return {"repeat": item.times, "of": [_list_item(inner) for inner in item.of]}
    return {"use": str(item), "with": dict(item.overrides)} if item.overrides else str(item)


def _string_item(item: Use | Repeat) -> str:
    if isinstance(item, Use):
        return str(item)
    inner = " ".join(_string_item(inner) for inner in item.of)
    return f"{inner}*{item.times}" if len(item.of) == 1 and isinstance(item.of[0], Use) else f"({inner})*{item.times}"
