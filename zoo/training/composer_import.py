"""Importing Composer without the packages that it and torchmetrics load and training never uses.

These packages take four fifths of its import time: transformers and scikit-learn for scores of translations,
torchvision for images, scipy for sounds, peft, a client of a cloud. While Composer is imported, each of them is an
empty stand-in or absent. Later imports get the real package. Composer 0.32 has no setting for this.
tests/zoo/training/test_composer_import.py fails once Composer no longer imports one of them.
"""

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Composer needs these imports to succeed: every name in them is a placeholder.
STAND_INS = ("mcli", "scipy", "torchvision", "transformers")
# Composer can do without these: importing them raises ModuleNotFoundError.
ABSENT = ("chardet", "peft")


def import_composer() -> set[str]:
    """Import composer, unless it is imported.  Returns the packages that were left out.

    A package that is imported already stays as it is.
    """
    if "composer" in sys.modules:
        return set()
    before = set(sys.modules)
    loaded = {name.partition(".")[0] for name in before}
    finder = _Finder(
        [name for name in STAND_INS if name not in loaded], [name for name in ABSENT if name not in loaded]
    )
    sys.meta_path.insert(0, finder)
    try:
        import composer  # noqa: F401
    except Exception:  # another version, which uses a placeholder at once: import everything
        finder.asked.clear()
        _forget(name for name in set(sys.modules) - before if name.partition(".")[0] in ("composer", "torchmetrics"))
    finally:
        sys.meta_path.remove(finder)
        _forget([name for name, module in sys.modules.items() if isinstance(module, _StandIn)])
    importlib.import_module("composer")
    return finder.asked


def _forget(names) -> None:
    for name in list(names):
        del sys.modules[name]


class _Placeholder(type):
    """A class whose attributes are placeholders too.  Calling it raises ImportError."""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{cls.__name__}.{name}")

    def __call__(cls, *_, **__):
        package = cls.__name__.partition(".")[0]
        raise ImportError(
            f"{cls.__name__} was left out when Composer was imported; import {package} before zoo.training"
        )


def _placeholder(name: str) -> type:
    return _Placeholder(name, (), {})


class _StandIn(ModuleType):
    """A module that has every name."""

    __path__: list[str] = []  # so that its submodules are asked for here

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{self.__name__}.{name}")


class _Finder(MetaPathFinder, Loader):
    def __init__(self, stand_ins: list[str], absent: list[str]):
        self.stand_ins, self.absent = stand_ins, absent
        self.asked: set[str] = set()

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        package = fullname.partition(".")[0]
        if package not in (*self.stand_ins, *self.absent):
            return None
        self.asked.add(package)
        if package in self.absent:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
