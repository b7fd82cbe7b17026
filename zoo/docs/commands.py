"""`zoo docs ...` on the command line. MkDocs is imported only when a command runs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Build the documentation site, or preview it.", no_args_is_help=True)


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="The folder to build into; it is emptied first.")] = Path("site"),
) -> None:
    """Build the documentation site; a warning is an error."""
    from zoo.docs import site

    print(site.build(out))


@app.command()
def serve(address: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1:8000") -> None:
    """Serve the documentation while you write: pages in docs/ and recipes are followed, code is not."""
    from zoo.docs import site

    site.serve(address)
