"""Configs as plain data, as a recipe would write them. No torch."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from zoo.recipe import schedule
from zoo.recipe.schedule import Schedule


def plain(value: Any) -> Any:
    """A config as YAML data; a key whose value is None is left out if None is its default."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        kept = {name: getattr(value, name) for name, field in fields}
        return {
            name: plain(kept[name])
            for name, field in fields
            if not (
                kept[name] is None and not field.is_required() and field.get_default(call_default_factory=True) is None
            )
        }
    if isinstance(value, Schedule):
        return schedule.format_schedule(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
