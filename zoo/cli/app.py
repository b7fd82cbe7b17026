"""Typer applications whose help says what a reader needs: no types of Python, and an example of every command.

`App` is used in the place of `typer.Typer`.
"""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from zoo.cli.examples import EXAMPLES

# What typer calls a type -> what stands after an option that takes one; a flag takes nothing.
_VALUES = {"bool": "", "int": "N", "int range": "N", "float": "X", "str": "TEXT", "path": "PATH"}


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _readable(super().get_params(ctx), ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`[OPTIONS] RUN [TEXT]`: brackets around what may be left out, and nothing else."""
        arguments = [one for one in self.get_params(ctx) if one.param_type_name == "argument"]
        return ["[OPTIONS]", *map(_argument, arguments)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if ctx.command_path in EXAMPLES:
            self.epilog = f"Example: {EXAMPLES[ctx.command_path]}"
        super().format_help(ctx, formatter)


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _readable(super().get_params(ctx), ctx)


class App(typer.Typer):
    """A `typer.Typer` whose groups and commands have the help of this module."""

    def __init__(self, **options: Any):
        super().__init__(cls=_Group, **options)

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
