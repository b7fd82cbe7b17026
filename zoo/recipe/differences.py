"""What differs between two plain values, such as two recipes: key by key, and in words. No torch."""

from collections.abc import Iterator
from typing import Any

from zoo.errors import shorten

MOST_SHOWN = 90  # characters of a value; of a longer one the part around the first difference is shown


def differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, before, now) for what differs, as deep as both sides have the same form.

    Lists of one length that hold mappings are compared entry by entry, `data.sources[1].paths`; other lists as a whole.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            yield from differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    elif _by_entry(before, now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from differences(one, other, f"{key}[{index}]")
    elif before != now:
        yield key, before, now


def in_words(before: Any, now: Any) -> tuple[str, str]:
    """Both values on one line each, cut so that the first difference is in what is shown."""
    texts = [_shown(value) for value in (before, now)]
    if max(map(len, texts)) <= MOST_SHOWN:
        return texts[0], texts[1]
    first = next((i for i, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), min(map(len, texts)))
    start = max(0, first - MOST_SHOWN // 2)
    return _cut(texts[0], start), _cut(texts[1], start)


def _by_entry(before: Any, now: Any) -> bool:
    both = isinstance(before, list) and isinstance(now, list)
    return both and len(before) == len(now) and any(isinstance(entry, dict) for entry in before)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return repr(value) if isinstance(value, str) else shorten(value)


def _cut(text: str, start: int) -> str:
    part = text[start : start + MOST_SHOWN]
    return ("..." if start else "") + part + ("..." if start + MOST_SHOWN < len(text) else "")
