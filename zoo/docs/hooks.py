"""What MkDocs calls while it builds the site (mkdocs.yml names this file)."""

import tomllib
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from zoo.cli import app
from zoo.docs import examples, inline, mathml
from zoo.docs.pages import REFERENCE, generated, navigation
from zoo.errors import ZooError


def on_config(config: Any) -> Any:
    """Write the generated pages, in memory, and enter them at the head of `Reference` in the navigation."""
    root = Path(config.config_file_path).parent
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    config.repo_url = config.repo_url or urls.get("Repository")
    pages = _told(generated, root, app)
    config.extra["zoo_pages"] = pages
    for section in config.nav:
        if "Reference" in section:
            section["Reference"] = [*navigation(pages, root), *section["Reference"]]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those of docs/."""
    for path, text in config.extra["zoo_pages"].items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Work out the live examples of schedules; the home page ends with the list of the generated pages."""
    path = page.file.src_uri
    return _told(examples.with_results, markdown, path) + (REFERENCE if path == "index.md" else "")


def on_page_content(html: str, page: Any, config: Any, **_: Any) -> str:
    """Turn LaTeX into MathML, and put attention maps into the page, where they have the colour of its text."""
    html = inline.with_maps(html, page.file.src_uri, config.extra["zoo_pages"])
    try:
        return mathml.with_mathml(html)
    except ZooError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def _told(function: Any, *arguments: Any) -> Any:
    """Call a function of ours; its errors end the build as MkDocs' own do, without a traceback."""
    try:
        return function(*arguments)
    except ZooError as error:
        raise PluginError(str(error)) from error
