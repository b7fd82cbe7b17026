"""The gallery of published models: the layers of each recipe in recipes/models/, and what a recipe lacks. No torch."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from zoo.counting.model_cost import model_cost
from zoo.docs.recipes import FOLDER, page_of
from zoo.docs.strip import band, pattern_legend, strip
from zoo.recipe import Recipe, load_recipe
from zoo.recipe.schedule import format_schedule
from zoo.report.rows import binary, decimal

PATH = f"{FOLDER}/models/index.md"
TOKENS = 32_768
ABOUT = """
Recipes of published models, architecture only: shapes, schedule and every option that changes what the model computes.
`zoo show`, `cost` and `compare` count them; a recipe of your own can extend one. Tests compare their parameters
with those of the published `config.json`. [Weights of published models](../../../models.md) reads weights.
""".strip()


def models_page(root: Path) -> str:
    """Markdown of the gallery of a checkout."""
    loaded = [(path, load_recipe(path)) for path in sorted((root / "recipes" / "models").glob("*.yaml"))]
    head = f"| recipe | layers | parameters | active | cache of {TOKENS:,} tokens |\n|---|---|---:|---:|---:|"
    rows = [_row(path, recipe) for path, recipe in loaded]
    sections = [section for path, recipe in loaded for section in _section(path, recipe)]
    parts = ["# Published models", ABOUT, _gallery([recipe for _, recipe in loaded]), "\n".join([head, *rows])]
    return "\n\n".join([*parts, *sections]) + "\n"


def _gallery(recipes: list[Recipe]) -> str:
    """The schedules of all models below one another; a name leads to its section."""
    lines = "".join(
        f'<a href="#{recipe.name}">{escape(recipe.name)}</a>{band(recipe.model.expanded())}' for recipe in recipes
    )
    layers = [layer for recipe in recipes for layer in recipe.model.expanded()]
    return f'<div class="zoo-gallery">{lines}</div>\n{pattern_legend(layers)}'


def comment(path: Path) -> str:
    """The comment that a recipe begins with, as one paragraph."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def _row(path: Path, recipe: Recipe) -> str:
    cost = model_cost(recipe.model, TOKENS)
    counts = decimal(cost.parameters["total"]), decimal(cost.active_parameters), binary(cost.cache_held_bytes)
    return f"| [`{path.stem}`]({path.stem}.md) | `{format_schedule(recipe.model.layers)}` | {' | '.join(counts)} |"


def _section(path: Path, recipe: Recipe) -> Iterator[str]:
    yield f"## {recipe.name}"
    yield f"{comment(path)} [The recipe]({Path(page_of(Path('recipes/models') / path.name)).name})."
    yield strip(recipe.model.expanded(), recipe.model.d_model)
