"""Arguments and options that several commands have, and the recipe or run that they name. Imports nothing heavy."""

import os
from pathlib import Path
from typing import Annotated

import typer

from zoo.child import LAUNCHED
from zoo.cli.starting import collection_paused
from zoo.errors import Problem, RecipeError
from zoo.terminal import err

RecipeFile = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="A YAML file, or a name from zoo recipes such as zoo:quickstart.", show_default=False
    ),
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, e.g. runs/quickstart.", show_default=False)
]
Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. --set train.duration=200ba. Repeatable."),
]


def import_plugins(modules: list[str] | None) -> list[str] | None:
    """Import the modules that the user names, before a recipe or a run is read."""
    from zoo.blocks import load_plugin

    for module in modules or []:
        try:
            load_plugin(module)
        except ValueError as error:
            raise RecipeError([Problem(str(error), key="--plugin")]) from error
    return modules


Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE",
        callback=import_plugins,
        help="Import this module of block kinds, e.g. one that a run folder names. Repeatable.",
    ),
]
Kind = Annotated[str | None, typer.Argument(help="A kind of block; without it all kinds.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@collection_paused()
def load(path: Path, overrides: list[str] | None):
    """Read a recipe for a command; its notes go to standard error."""
    from zoo.recipe import load_recipe

    recipe = load_recipe(path, overrides=overrides or [])
    # Of several processes the first says it; `zoo train --devices` has said it before it started this one.
    if os.environ.get("RANK", "0") == "0" and LAUNCHED not in os.environ:
        for note in recipe.notes:
            err(f"note: {path}: {note}")
    return recipe


@collection_paused()
def load_run(folder: Path, overrides: list[str] | None):
    """The recipe that a run was trained with."""
    from zoo.files import present
    from zoo.recipe import load_recipe

    path = folder / "recipe.yaml"
    if not present(path):
        raise RecipeError(
            [
                Problem(
                    f"no such file; {folder} is neither a recipe nor a run folder; zoo runs lists the runs", str(path)
                )
            ]
        )
    if overrides:
        raise typer.BadParameter(f"a run is shown as it was trained; found {overrides[0]}.", param_hint="--set")
    return load_recipe(path, of_run=True)
