"""`zoo init`, `zoo recipes` and `zoo runs`: what there is to begin with, and what has been trained. No torch."""

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.starting import collection_paused
from zoo.terminal import out, out_styled

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def init(
    where: Annotated[
        Path, typer.Argument(metavar="[FOLDER_OR_FILE]", help="A folder for recipe.yaml, or a .yaml file.")
    ] = Path("."),
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="NAME", help="Start from a kind of block, or from a recipe of the package."),
    ] = None,
) -> None:
    """Write a commented recipe to begin with, and the schema that editors check it against."""
    from zoo.recipe.starter import write_starter

    out(write_starter(where, source))


@collection_paused()
def recipes(json: AsJson = False) -> None:
    """List the recipes that come with the package. A name, zoo:..., can replace the path of a recipe."""
    from zoo.cli import shipped_text as room

    out_styled(room.as_json() if json else room.as_text(), end="")


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The folder to search, with its subfolders.")
    ] = Path("runs"),
    json: AsJson = False,
) -> None:
    """List runs: how far each is, and its last validation."""
    from zoo.runs import listing as room

    out_styled(room.as_json(folder) if json else room.as_text(folder), end="")
