"""Importing Composer and Streaming without the packages that they load and training never uses.

These packages take four fifths of the import time: transformers, and through it scikit-learn and pandas, for scores of
translations and for tokenizers of examples; torchvision for images, scipy for sounds, peft, a client of a cloud. While
Composer or Streaming is imported, each of them is an empty stand-in or absent. Later imports get the real package.
Composer 0.32 and Streaming 0.13 have no setting for this.
tests/zoo/training/test_lean_import.py fails once they no longer import one of these packages.
"""

import importlib
import importlib.util
import sys
from abc import ABCMeta
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NamedTuple

from zoo.processes import processor


class LeftOut(NamedTuple):
    """What a package imports and training does not use.

    stand_ins: packages whose imports must succeed, so every name in them is a placeholder.
    absent: packages that it can do without, so importing them raises ModuleNotFoundError.
    """

    stand_ins: tuple[str, ...]
    absent: tuple[str, ...] = ()


OF_COMPOSER = LeftOut(stand_ins=("cpuinfo", "mcli", "scipy", "torchvision", "transformers"), absent=("chardet", "peft"))
OF_STREAMING = LeftOut(stand_ins=("torchvision", "transformers"))


def import_composer() -> set[str]:
    """Import composer, unless it is imported.  Returns the packages that were left out.

    A package that is imported already stays as it is. In any case Composer gets the processor's name from
    `zoo.processes`: cpuinfo starts a process when it is imported, and another one, which takes a second, to find it.
    """
    left_out = _import("composer", OF_COMPOSER, ("composer", "torchmetrics"))
    from composer.utils import collect_env

    collect_env.get_cpu_model = processor
    return left_out


def import_streaming() -> set[str]:
    """Import streaming as `import_composer` imports composer."""
    return _import("streaming", OF_STREAMING, ("streaming",))


def _import(name: str, left_out: LeftOut, again: tuple[str, ...]) -> set[str]:
    """again: the packages that are imported once more, with everything, if it does not work without."""
    if name in sys.modules:
        return set()
    before = set(sys.modules)
    loaded = {module.partition(".")[0] for module in before}
    stand_ins, absent = ([package for package in packages if package not in loaded] for packages in left_out)
    finder = _Finder(stand_ins, absent)
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module(name)
    except Exception:  # another version, which uses a placeholder at once: import everything
        finder.asked.clear()
        _forget(module for module in set(sys.modules) - before if module.partition(".")[0] in again)
    finally:
        sys.meta_path.remove(finder)
        _forget([module for module, content in sys.modules.items() if isinstance(content, _StandIn)])
    importlib.import_module(name)
    return finder.asked


def _forget(names) -> None:
    for name in list(names):
        del sys.modules[name]


class _Placeholder(ABCMeta):
    """A class whose attributes are placeholders too.  Calling it, or a class that inherits from it, raises ImportError.

    An ABCMeta, because classes of Streaming inherit from a placeholder and from an abstract class.
    """

    _left_out: str  # the name of the placeholder, which classes that inherit from it keep

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{cls._left_out}.{name}")

    def __call__(cls, *_, **__):
        name, package = cls._left_out, cls._left_out.partition(".")[0]
        imported = "zoo.training imported Composer and Streaming"
        raise ImportError(f"{name} was left out when {imported}; import {package} before zoo.training")


def _placeholder(name: str) -> type:
    return _Placeholder(name, (), {"_left_out": name})


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
