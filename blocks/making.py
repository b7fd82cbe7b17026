"""Making what runs of a part, and saying in one line what is wrong with a part of another package. No torch at the top.

The zoo's own parts are made without these checks: tests hold that they are as they should be.
"""

import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from zoo.blocks.drawing import drawn
from zoo.blocks.plugins import named_plugins
from zoo.blocks.registry import FAMILIES, load

OWN = "zoo."  # what the names of the zoo's modules begin with


class PartError(ValueError):
    """A part of another package does not match its interface. The message is one line."""


def is_own(thing: Any) -> bool:
    """Whether a class, or "package.module:name", is the zoo's."""
    return (thing if isinstance(thing, str) else f"{thing.__module__}.").startswith(OWN)


def make(what: str, target: str, *arguments: Any, is_a: Any = object, needs: Iterable[str] = ()) -> Any:
    """What `target` ("package.module:name") makes of the arguments.

    what: the part in messages, such as `pattern 'dilated'`.  is_a: the class that the result must be of.  needs: the
    methods that it must have.  Raises PartError if a part of another package cannot be loaded or made, or is something
    else.
    """
    if is_own(target):
        return load(target)(*arguments)
    try:
        maker = load(target)
    except (Exception, SystemExit) as error:  # a module of another package can raise anything while it is imported
        raise PartError(f"{what}: module {target!r} cannot be loaded: {described(error)}") from error
    try:
        with drawn(True):
            made = maker(*arguments)
    except Exception as error:
        raise PartError(f"{what}: {target} cannot be made: {described(error)}") from error
    if not isinstance(made, is_a):
        raise PartError(f"{what}: {target} must make a {is_a.__module__}.{is_a.__qualname__}; found {type_name(made)}")
    check_methods(f"{what}: {target}", made, needs)
    return made


def make_module(what: str, target: str, *arguments: Any, needs: Iterable[str] = ()) -> Any:
    """As `make`, of a `torch.nn.Module` that has `forward`."""
    from torch import nn

    return check_module(f"{what}: {target}", make(what, target, *arguments, is_a=nn.Module, needs=needs))


def check_module(what: str, module: Any) -> Any:
    """The module; raises PartError if it is none, or has no `forward`."""
    from torch import nn

    if not isinstance(module, nn.Module):
        raise PartError(f"{what} must be a torch.nn.Module; found {type_name(module)}")
    if type(module).forward is nn.Module.forward:
        raise PartError(f"{what}: {type(module).__name__} does not define forward")
    return module


def check_methods(what: str, made: Any, needs: Iterable[str]) -> None:
    """Raise PartError that names the methods which are missing."""
    missing = [name for name in needs if not callable(getattr(made, name, None))]
    if missing:
        raise PartError(f"{what} must define {' and '.join(missing)}; {type(made).__name__} does not")


def described(error: BaseException) -> str:
    """The error in one line: what it says, and the line of another package that it comes from."""
    says = next(iter(str(error).splitlines()), "")
    stated = isinstance(error, NotImplementedError | PartError) and says
    return (says if stated else f"{type(error).__name__}: {says}".removesuffix(": ")) + _place(error)


def _place(error: BaseException) -> str:
    """` (file.py, line 3, in forward)`: the innermost place in a module that brings parts; "" if there is none."""
    tops = _tops()
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if _top(frame) in tops:
            return f" ({Path(frame.f_code.co_filename).name}, line {line}, in {frame.f_code.co_name})"
    return ""


def _top(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def explain(error: BaseException) -> str | None:
    """What a part of another package did, for an error that was raised in its code; None for any other error.

    It is an error of the part if a module of a plugin, or of a package that offers a part, is on the way to it.
    """
    tops = _tops()
    top = next((top for frame, _ in traceback.walk_tb(error.__traceback__) if (top := _top(frame)) in tops), None)
    if top is None:
        return explain(error.__cause__) if error.__cause__ is not None else None
    return f"an error in {top}: {described(error)}; with ZOO_TRACEBACK=1 the whole traceback is printed"


def _tops() -> set[str]:
    """The packages, or single modules, that parts of this process come from."""
    targets = [target for family in FAMILIES.values() for target in family.of_others()]
    tops = {name.partition(":")[0].partition(".")[0] for name in (*targets, *named_plugins())}
    return (tops - {"zoo"}) & set(sys.modules)


def type_name(made: Any) -> str:
    """What messages call the type of a value."""
    return "None" if made is None else type(made).__name__
