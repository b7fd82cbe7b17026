"""`zoo docs ...` on the command line. MkDocs is imported only when a command runs."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.app import App
from zoo.errors import ZooError

app = App(help="Build the documentation site, or preview it.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    if find_spec("zoo.docs") is None:
        raise ZooError("zoo docs needs a checkout of the repository: the pages and what builds them are not installed")


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="The folder to build into; it is emptied first.")] = Path("site"),
) -> None:
    """Build the documentation site; a warning is an error."""
    from zoo.docs import site

    print(site.build(out))


@app.command()
def serve(address: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1:8000") -> None:
    """Serve the documentation while you write: it follows changes of docs/ and recipes, but not of code."""
    from zoo.docs import site

    site.serve(address)
