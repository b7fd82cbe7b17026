"""From the study file to its runs: architectures x points of the grid x seeds, each a checked recipe. No torch."""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zoo.data.config import Synthetic
from zoo.errors import Problem, RecipeError, did_you_mean
from zoo.recipe import Recipe, load_recipe, shipped
from zoo.recipe.yaml_reader import Node, Place
from zoo.study.config import Entry, Study
from zoo.study.matching import Change, match


@dataclass(frozen=True)
class Point:
    """One choice from the grid: the values by key, and how they are written in names and tables."""

    values: tuple[tuple[str, Any], ...]
    label: str

    def value(self, key: str) -> Any:
        """The value of a key of the grid."""
        return dict(self.values)[key]


@dataclass(frozen=True)
class Run:
    """One training: the recipe, resolved, with its seed. `id` names its folder."""

    id: str
    architecture: str
    point: Point
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class Runs:
    """All that a study may train.

    architectures: name -> recipe file.  recipes: (architecture, point label) -> recipe with the first seed.
    changes: of matching.  notes: what was set for every run, and what is not equal between the architectures.
    """

    study: Study
    architectures: dict[str, str]
    points: list[Point]
    recipes: dict[tuple[str, str], Recipe]
    changes: list[Change]
    notes: list[str]

    def run(self, architecture: str, point: Point, seed: int) -> Run:
        """The run of an architecture at a point with a seed."""
        recipe = self.recipes[architecture, point.label].model_copy(update={"seed": seed})
        parts = [architecture, *([_slug(point.label)] if point.label else []), f"seed{seed}"]
        return Run("-".join(parts), architecture, point, seed, recipe)

    def choosing(self) -> Iterator[Run]:
        """The runs that choose a point of the grid, one architecture after another at each point."""
        for seed in self.study.config.choosing:
            for point in self.points:
                for name in self.architectures:
                    yield self.run(name, point, seed)

    def counting(self, architecture: str, point: Point) -> Iterator[Run]:
        """The runs whose results are reported, at the chosen point."""
        return (self.run(architecture, point, seed) for seed in self.study.config.counting)


def expand(study: Study) -> Runs:
    """Read every recipe of the study at every point of the grid.

    Raises RecipeError with every mistake, at its place in the study file or in the recipe.
    """
    points = list(_points(study))
    problems: list[Problem] = []
    entries: dict[str, tuple[int, Entry, str]] = {}
    for index, entry in enumerate(study.config.recipes):
        path = study.recipe_path(entry.recipe or study.config.base or "")
        try:
            name = entry.name or _load(study, index, entry, path, points[0]).name
        except RecipeError as error:
            problems += error.problems
            continue
        if name in entries:
            message = f"another architecture has the name {name!r}; give one of them a name of its own"
            problems.append(study.problem(("recipes", index), message))
        entries[name] = index, entry, path
    recipes = {}
    for (name, (index, entry, path)), point in itertools.product(entries.items(), points):
        try:
            recipes[name, point.label] = _load(study, index, entry, path, point)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    changes = match(study, entries, [point.label for point in points], recipes) if study.config.match else []
    notes = _data_seed_notes(study, recipes)
    return Runs(study, {name: path for name, (_, _, path) in entries.items()}, points, recipes, changes, notes)


def _points(study: Study) -> Iterator[Point]:
    grid = study.config.grid
    names = _short_names(list(grid))
    for values in itertools.product(*grid.values()):
        chosen = tuple(zip(grid, values, strict=True))
        yield Point(chosen, ", ".join(f"{names[key]}={_text(value)}" for key, value in chosen))


def _short_names(keys: list[str]) -> dict[str, str]:
    """The last parts of the keys, as many as tell them apart."""
    for depth in range(1, 20):
        short = {key: ".".join(key.split(".")[-depth:]) for key in keys}
        if len(set(short.values())) == len(keys):
            break
    return short


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _slug(label: str) -> str:
    """A label as part of a folder's name; one that cannot be written so has a checksum in it."""
    joined = label.replace(", ", "-")
    plain = re.sub(r"[^A-Za-z0-9._=+-]", "_", joined)[:60]
    return plain if plain == joined else f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def _load(study: Study, index: int, entry: Entry, path: str, point: Point) -> Recipe:
    """The recipe of an architecture at a point, with the settings of the study."""
    if shipped.is_name(path):
        if shipped.find(path) is None:
            raise RecipeError([study.problem(("recipes", index) if entry.recipe else ("base",), shipped.unknown(path))])
    elif not os.path.exists(path):
        around = os.path.dirname(path) or "."
        files = os.listdir(around) if os.path.isdir(around) else []
        recipes = [name for name in files if name.endswith((".yaml", ".yml"))]
        key = ("recipes", index) if entry.recipe else ("base",)
        hint = did_you_mean(os.path.basename(path), recipes)
        raise RecipeError([study.problem(key, f"no such file: {path}.{hint}")])
    settings = [
        *_settings(study.root.value.get("set")),
        *_settings(_entry_node(study.root, index)),
        *_grid_settings(study, point),
        ("seed", _made(study.config.seeds[0])),
    ]
    recipe = load_recipe(path, settings=settings)
    if keys := _unseeded(recipe):
        fixed = [(f"{key}.seed", _made(study.config.seeds[0])) for key in keys]
        recipe = load_recipe(path, settings=[*settings, *fixed])
    return recipe


def _entry_node(root: Node, index: int) -> Node | None:
    node = root.value["recipes"].value[index]
    return node.value.get("set") if isinstance(node.value, dict) else None


def _settings(node: Node | None) -> list[tuple[str, Node]]:
    return [] if node is None else [(key, _copy(value)) for key, value in node.value.items()]


def _copy(node: Node) -> Node:
    """A tree of its own: laying one over a recipe changes the recipe's, which may hold parts of this one."""
    if isinstance(node.value, dict):
        return Node({key: _copy(child) for key, child in node.value.items()}, node.place, node.key, node.verbatim)
    if isinstance(node.value, list):
        return Node([_copy(child) for child in node.value], node.place, node.key, node.verbatim)
    return Node(node.value, node.place, node.key, node.verbatim)


def _grid_settings(study: Study, point: Point) -> list[tuple[str, Node]]:
    if not point.values:
        return []
    grid = study.root.value["grid"].value
    found = []
    for key, value in point.values:
        place = study.config.grid[key].index(value)
        node = _copy(grid[key].value[place])
        node.key = node.key or node.place
        found.append((key, node))
    return found


def _made(value: Any) -> Node:
    return Node(value, Place("the study"), Place("the study"))


def _unseeded(recipe: Recipe) -> list[str]:
    """The keys of the sources that would make other rows for each seed of the recipe."""
    data, found = recipe.data, []
    named = [("data.source", data.source), ("data.validation_source", data.validation_source)]
    named += [(f"data.sources.{i}", source) for i, source in enumerate(data.sources or ())]
    for key, source in named:
        if isinstance(source, Synthetic) and source.seed is None:
            found.append(key)
    return found


def _data_seed_notes(study: Study, recipes: dict) -> list[str]:
    seed = study.config.seeds[0]
    made = any(isinstance(source, Synthetic) for recipe in recipes.values() for source in recipe.data.streams())
    return [f"rows made by rule have the seed {seed} in every run, so that they are made once"] if made else []


def data_key(run: Run) -> str:
    """What decides which rows are prepared for a run: equal for runs that differ in the seed or the learning rate."""
    recipe = run.recipe
    data = recipe.data.model_dump(mode="json", exclude={"workers"})
    return json.dumps([data, recipe.model.max_seq_len, recipe.model.vocab_size], sort_keys=True)
