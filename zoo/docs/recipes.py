"""The page of each recipe in recipes/: its strip, its numbers, how to run it. No torch."""

from pathlib import Path
from typing import Any

from zoo.docs.strip import strip
from zoo.recipe import Recipe, load_recipe, shipped
from zoo.report.rows import binary, decimal
from zoo.report.show import CONTEXTS, facts
from zoo.training.duration import Span

FOLDER = "reference/recipes"
NOT_RECIPES = ("_", "study")  # what `extends` names, and studies


def recipe_files(root: Path) -> list[Path]:
    """Every recipe of a checkout, `_base` files and studies left out, relative to it; small families first."""
    found = [
        path.relative_to(root) for path in (root / "recipes").rglob("*.yaml") if not path.name.startswith(NOT_RECIPES)
    ]
    return sorted(found, key=lambda path: (len(path.parts), load_recipe(root / path).model.d_model, path))


def recipe_pages(root: Path) -> dict[str, str]:
    """Path -> Markdown of the page of every recipe of a checkout, and of their list."""
    loaded = {path: load_recipe(root / path) for path in recipe_files(root)}
    pages = {page_of(path): recipe_page(root, path, recipe) for path, recipe in loaded.items()}
    return {f"{FOLDER}/index.md": _index(loaded), **pages}


def page_of(path: Path) -> str:
    """recipes/tiny/full.yaml -> reference/recipes/tiny/full.md."""
    return f"{FOLDER}/{path.relative_to('recipes').with_suffix('.md')}"


def recipe_page(root: Path, path: Path, recipe: Recipe) -> str:
    """Markdown of the page of one recipe."""
    found, model = facts(recipe), recipe.model
    file = (root / path).read_text(encoding="utf-8")
    sections = [
        f"# {recipe.name}",
        f"{recipe.summary}.",
        f"## {len(found['layers'])} layers",
        strip(model.expanded(), model.d_model),
        "## Numbers",
        _numbers(found),
        _caches(found),
        "## Run it",
        _commands(path, recipe),
        "## The file",
        f'```yaml title="{path}"\n{file.rstrip()}\n```',
        f'??? note "Resolved: with everything it extends, and every default"\n\n{_resolved(recipe)}',
    ]
    return "\n\n".join(sections) + "\n"


def _numbers(found: dict[str, Any]) -> str:
    flops = {**found["flops_by_part"], "total": found["flops_per_token"]}
    lines = [
        f"| | parameters | forward FLOPs per token at {found['max_seq_len']:,} tokens |",
        "|---|---:|---:|",
    ]
    for part, count in found["parameters"].items():
        lines.append(f"| {part} | {count:,} | {f'{flops[part]:,.0f}' if flops.get(part) else ''} |")
    return "\n".join(lines)


def _caches(found: dict[str, Any]) -> str:
    cache = found["cache"]
    heads = " | ".join(f"{length:,} tokens" for length in CONTEXTS)
    lines = [f"| cache of one row, bf16 | {heads} | per token |", f"|---|{'---:|' * (len(CONTEXTS) + 1)}"]
    for name, shown in (("nominal", "nominal"), ("held", "allocated")):
        sizes = " | ".join(binary(cache[f"{name}_bytes"][str(length)]) for length in CONTEXTS)
        lines.append(f"| {shown} | {sizes} | {binary(cache['nominal_bytes_per_token']) if name == 'nominal' else ''} |")
    about = "*Nominal* counts every layer at every token; *allocated* is the size of the cache tensors."
    return "\n".join(lines) + f"\n\n{about}"


def _commands(path: Path, recipe: Recipe) -> str:
    train, seq_len = recipe.train, recipe.seq_len
    name = shipped.PREFIX + path.relative_to("recipes").with_suffix("").as_posix()
    rows = f"a batch has {train.rows(seq_len):,} rows of {seq_len:,} tokens"
    about = f"It trains for {_in_words(train.duration)}; {rows}."
    return (
        f"```bash\nzoo show {name}\nzoo cost {name}\nzoo data prepare {name}\nzoo train {name}\n```\n\n"
        f"{about} The run folder is `runs/{recipe.name}`."
    )


def _in_words(duration: str) -> str:
    """`15Btok` -> `15 billion tokens`, `250ba` -> `250 batches`."""
    span = Span.parse(duration)
    one, several = {"tok": ("token", "tokens"), "ba": ("batch", "batches"), "ep": ("epoch", "epochs")}[span.unit]
    unit = one if span.value == 1 else several
    for factor, word in ((10**9, "billion "), (10**6, "million ")):
        if span.value >= factor:
            return f"{span.value / factor:g} {word}{unit}"
    return f"{span.value.normalize():,f} {unit}"


def _resolved(recipe: Recipe) -> str:
    text = f'```yaml title="{recipe.name}, resolved"\n{recipe.dump().rstrip()}\n```'
    return "\n".join(f"    {line}" for line in text.splitlines())


def _index(loaded: dict[Path, Recipe]) -> str:
    lines = [
        "# Recipes",
        "Every recipe in `recipes/`. FLOPs are those of a forward pass at the recipe's own length; the cache is that "
        f"of one row of {CONTEXTS[-1]:,} tokens in bf16, as it is allocated.",
        "| recipe | | parameters | FLOPs per token | cache |\n|---|---|---:|---:|---:|",
    ]
    rows = []
    for path, recipe in loaded.items():
        found = facts(recipe)
        link = page_of(path).removeprefix(f"{FOLDER}/")
        held = binary(found["cache"]["held_bytes"][str(CONTEXTS[-1])])
        cells = (recipe.summary, decimal(found["parameters"]["total"]), decimal(found["flops_per_token"]), held)
        rows.append(f"| [`{path}`]({link}) | {' | '.join(cells)} |")
    return "\n\n".join(lines) + "\n" + "\n".join(rows) + "\n"
