"""Typer applications whose help says what a reader needs: no types of Python, and an example of every command.

`App` is used in the place of `typer.Typer`.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from zoo.cli.examples import EXAMPLES
from zoo.cli.starting import collection_paused

# What typer calls a type -> what stands after an option that takes one; a flag takes nothing.
_VALUES = {"bool": "", "int": "N", "int range": "N", "float": "X", "str": "TEXT", "path": "PATH"}


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _readable(super().get_params(ctx), ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`[OPTIONS] RUN [TEXT]`: brackets around what may be left out, and nothing else."""
        arguments = [one for one in self.get_params(ctx) if one.param_type_name == "argument"]
        return ["[OPTIONS]", *map(_argument, arguments)]

    @collection_paused()  # what converts the first value imports pydantic
    def make_context(self, *arguments: Any, **options: Any) -> Any:
        return super().make_context(*arguments, **options)

    @collection_paused()
    def format_help(self, ctx: Any, formatter: Any) -> None:
        if ctx.command_path in EXAMPLES:
            self.epilog = f"Example: {EXAMPLES[ctx.command_path]}"
        super().format_help(ctx, formatter)


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _readable(super().get_params(ctx), ctx)

    @collection_paused()  # what converts the first value imports pydantic
    def make_context(self, *arguments: Any, **options: Any) -> Any:
        return super().make_context(*arguments, **options)

    @collection_paused()
    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)


class _Commands(Mapping[str, Any]):
    """The commands of a group by name; each is imported and made when it is first looked at."""

    def __init__(self, targets: dict[str, str]):
        self._targets = targets
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._make(name, self._targets[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def _make(self, name: str, target: str) -> Any:
        module, _, attribute = target.partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, App):
            alone = App()
            alone.command(name)(found)
            return typer.main.get_command(alone)
        group = typer.main.get_command(found)
        group.name = name
        return group


def _group_of(targets: dict[str, str]) -> type[_Group]:
    """The class of a group whose commands are those of `targets`."""

    class Group(_Group):
        def __init__(self, **options: Any):
            super().__init__(**options)
            self.commands = _Commands(targets)  # type: ignore[assignment] # nothing is added to it

    return Group


class App(typer.Typer):
    """A `typer.Typer` whose groups and commands have the help of this module.

    commands: name -> "module:function" or "module:app" of commands that are imported when they are called or listed,
    in the order of the help. With them, `command` and `add_typer` are not for this application.
    """

    def __init__(self, commands: dict[str, str] | None = None, **options: Any):
        cls = _Group if commands is None else _group_of(commands)
        super().__init__(cls=cls, add_completion=commands is not None, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable:
        """As `typer.Typer.command`."""
        return super().command(name, **{"cls": _Command, **options})


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    if parameter.nargs == -1 and not name.endswith("..."):
        name = f"{name}..."
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _readable(parameters: list[Any], ctx: Any) -> list[Any]:
    """The parameters with a word for their value in the place of its type; of arguments the name says enough."""
    for parameter in parameters:
        show_type = getattr(parameter, "display_type", None)
        if parameter.param_type_name == "argument":
            parameter.display_type_rich = _nothing
        elif parameter.metavar is None and show_type is not None:
            name = show_type(ctx).strip("<>").removeprefix("list[").removesuffix("]")
            parameter.metavar = _VALUES.get(name, name.upper())
    return parameters


def _nothing(ctx: Any) -> None:
    return None
