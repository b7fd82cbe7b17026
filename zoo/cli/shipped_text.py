"""What `zoo recipes` prints: the recipes, bases and studies that come with the package, a line each. No torch."""

from dataclasses import asdict, dataclass
from pathlib import Path

from zoo.json_text import json_text
from zoo.recipe import shipped
from zoo.recipe.yaml_reader import read_recipe
from zoo.tables import Table, Text, rendered

HEADINGS = {
    "recipe": "Recipes: zoo show NAME, zoo train NAME",
    "base": "What recipes share, for `extends: NAME`",
    "study": "Studies: zoo study run NAME",
}


@dataclass(frozen=True)
class Shipped:
    """A file of the package.  kind: recipe, base (to be extended) or study.  summary: one line."""

    name: str
    kind: str
    summary: str


def listed() -> list[Shipped]:
    """Every file with its summary; of a base, which has none, the first sentence of its comment."""
    found = []
    for name in shipped.names():
        values = read_recipe(name).plain()
        base = name.rpartition("/")[2].startswith("_")
        kind = "base" if base else "study" if "recipes" in values else "recipe"
        summary = _first_comment(Path(shipped.find(name) or name)) if base else values.get("summary", "")
        found.append(Shipped(name, kind, summary))
    return found


def _first_comment(path: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end]).split(". ")[0].removesuffix(".")


def as_json() -> str:
    """The list as JSON: name, kind and summary of each."""
    return json_text([asdict(one) for one in listed()])


def as_text(width: int | None = None) -> str:
    """The list for a terminal, by kind."""
    found = listed()
    parts: list[Table | Text] = []
    for kind, heading in HEADINGS.items():
        table = Table(heading, "")
        for one in found:
            if one.kind == kind:
                table.add_row(one.name, one.summary)
        parts += [table, Text()]
    return rendered(parts[:-1], width)
