"""The families that can be read and written: every module of zoo/interop/families/ has one.  No torch."""

import pkgutil
from functools import cache
from importlib import import_module

from zoo.errors import unknown
from zoo.interop import families
from zoo.interop.errors import InteropError
from zoo.interop.family import Family

# Models with an encoder of images, and the family of their text model.
TEXT_MODELS = {"gemma3": "gemma3_text", "llama4": "llama4_text"}


@cache
def names() -> tuple[str, ...]:
    """The `model_type` of every family, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(families.__path__)))


def family_to_write(name: str) -> Family:
    """The family of `--as NAME`; for a model with an encoder of images that of its text model.

    Raises InteropError if there is none.
    """
    return family(TEXT_MODELS.get(name, name), "--as")


def family(name: object, place: str) -> Family:
    """The family of that `model_type`.  Raises InteropError, beginning with `place`, if there is none."""
    if not isinstance(name, str) or name not in names():
        raise InteropError(f"{place}: {unknown('model_type', name, names())}")
    return import_module(f"zoo.interop.families.{name}").FAMILY
