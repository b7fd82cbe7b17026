"""All generated pages of the site, and where they stand in its navigation. The attention maps need torch."""

from pathlib import Path
from typing import Any

import typer

from zoo.docs import benchmarks, commands_page, keys_page, models_page, notebook, python_page
from zoo.docs.families import FOLDER as PARTS
from zoo.docs.families import family_pages
from zoo.docs.kinds import FOLDER as BLOCKS
from zoo.docs.kinds import kind_maps, kind_pages
from zoo.docs.recipes import FOLDER as RECIPES
from zoo.docs.recipes import recipe_pages
from zoo.docs.study_pages import study_pages
from zoo.errors import ZooError

REFERENCE = f"""
## Reference

- [Recipe keys]({keys_page.PATH}): every key with type, bounds, default, meaning and example
- [Blocks]({BLOCKS}/index.md): what each computes, its fields, what a query sees, what it costs
- [Patterns]({PARTS}/patterns.md), [projections]({PARTS}/projections.md), [feed-forwards]({PARTS}/ffns.md),
  [optimisers]({PARTS}/optimizers.md), [schedules]({PARTS}/schedules.md), [sources]({PARTS}/sources.md),
  [tokenizers]({PARTS}/tokenizers.md) and [loggers]({PARTS}/loggers.md): what else a recipe chooses from
- [Recipes]({RECIPES}/index.md): layers and numbers of each recipe that ships
- [Published models]({models_page.PATH}): the layers of Llama, Gemma, DeepSeek-V3 and others, as recipes
- [Commands]({commands_page.PATH}) and [Python]({python_page.PATH})
- [Benchmarks]({benchmarks.PATH})
"""  # for the home page, which on its own has no such pages to link to


def checkout() -> Path:
    """The folder of the repository that zoo runs from. Raises ZooError if zoo is installed without it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "mkdocs.yml").is_file():
        raise ZooError("zoo docs needs a checkout of the repository: docs/ and recipes/ are not part of the package")
    return root


def generated(root: Path, app: typer.Typer) -> dict[str, str]:
    """Path below docs/ -> text of every generated page and drawing. Nothing is written.  app: the command line.

    Raises ZooError for a formula that `cost` does not bear out, RecipeError for a recipe that does not load.
    """
    return {
        **kind_pages(),
        **kind_maps(),
        **family_pages(),
        **recipe_pages(root),
        models_page.PATH: models_page.models_page(root),
        keys_page.PATH: keys_page.keys_page(),
        commands_page.PATH: commands_page.commands_page(app),
        python_page.PATH: python_page.python_page(),
        **study_pages(root),
        benchmarks.PATH: benchmarks.benchmarks_page(root / "docs"),
        notebook.PATH: notebook.as_notebook((root / "docs" / notebook.PAGE).read_text(encoding="utf-8")),
    }


def navigation(pages: dict[str, str], root: Path) -> list[dict[str, Any]]:
    """The generated part of the site's navigation, in MkDocs' form."""
    tables = sorted((root / "docs" / "benchmarks").glob("*.md"))
    return [
        {"Recipe keys": keys_page.PATH},
        {"Blocks": [page for page in pages if page.startswith(f"{BLOCKS}/") and page.endswith(".md")]},
        {"Other parts": [page for page in pages if page.startswith(f"{PARTS}/")]},
        {"Recipes": _recipes(pages)},
        {"Commands": commands_page.PATH},
        {"Python": python_page.PATH},
        {"Benchmarks": [benchmarks.PATH, *(f"benchmarks/{path.name}" for path in tables)]},
    ]


def _recipes(pages: dict[str, str]) -> list[Any]:
    """The list of recipes, those at the top, and the others by folder."""
    inside = [page for page in pages if page.startswith(f"{RECIPES}/")]
    top = [page for page in inside if page.count("/") == RECIPES.count("/") + 1]
    families: dict[str, list[str]] = {}
    for page in inside:
        if page not in top:
            families.setdefault(page.split("/")[-2], []).append(page)
    return [*top, *({family: members} for family, members in families.items())]
