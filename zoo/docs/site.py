"""Run MkDocs on the documentation: into a folder, or as a server that follows changes."""

import logging
from importlib.util import find_spec
from pathlib import Path

from zoo.docs.pages import checkout
from zoo.errors import ZooError
from zoo.extras import install_command

_NEEDED = ("mkdocs", "material", "mkdocstrings", "latex2mathml")


class MissingExtra(ZooError):
    """The packages of the extra `docs` are not installed."""

    exit_code = 2


def build(out: Path) -> str:
    """Build the site into a folder, which is emptied first; warnings are errors. Returns a line that says where it is.

    Raises MissingExtra without the extra `docs`, ZooError if something on a page is wrong, or if the folder holds
    anything but a site.
    """
    config_file = _prepared()
    _check_folder(out)
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config
    from mkdocs.exceptions import MkDocsException

    try:
        config = load_config(str(config_file), site_dir=str(out.absolute()), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        try:
            mkdocs_build(config)
        finally:
            config.plugins.on_shutdown()
    except MkDocsException as error:
        raise ZooError(f"the site was not built: {error}") from error
    n_pages = sum(1 for _ in out.rglob("*.html"))
    return f"{out}: {n_pages} pages; open {out / 'index.html'}, no server or network needed"


def serve(address: str) -> None:
    """Serve the site until Ctrl-C, built anew whenever docs/ or recipes/ change.  address: `127.0.0.1:8000`.

    Raises MissingExtra without the extra `docs`, ZooError if something on a page is wrong.
    """
    config_file = _prepared(level=logging.INFO)
    from mkdocs.commands.serve import serve as mkdocs_serve
    from mkdocs.exceptions import MkDocsException

    try:
        mkdocs_serve(str(config_file), watch=[str(checkout() / "recipes")], dev_addr=address)
    except MkDocsException as error:
        raise ZooError(f"the site was not built: {error}") from error


def _check_folder(out: Path) -> None:
    """MkDocs deletes all that is in the folder: it must be new, empty, or a site that was built before."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "search" / "search_index.json").is_file()):
        raise ZooError(f"--out {out}: holds other things; name a new folder, an empty one, or one with an earlier site")


def _prepared(level: int = logging.WARNING) -> Path:
    """The site's config file; the extra is there, and what MkDocs logs is shown on standard error."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtra(f"zoo docs needs {', '.join(missing)}; to install them: {install_command('docs')}")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("mkdocs")
    logger.handlers = [handler]
    logger.setLevel(level)
    return checkout() / "mkdocs.yml"
