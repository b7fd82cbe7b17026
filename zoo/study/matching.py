"""Parameters of the architectures made equal, by the width of their feed-forwards. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from zoo.counting.model_cost import model_cost
from zoo.errors import RecipeError
from zoo.recipe import Recipe
from zoo.study.config import Study

MULTIPLES = (128, 64, 32, 16, 8, 4, 2, 1)  # of d_ff: the largest that reaches the tolerance is taken
D_FF = "model.ffn.d_ff"


@dataclass(frozen=True)
class Change:
    """What matching did to an architecture at a point of the grid. `after` is None where nothing had to change."""

    architecture: str
    point: str
    parameters_before: int
    parameters: int
    before: int
    after: int | None

    def __str__(self) -> str:
        where = f" at {self.point}" if self.point else ""
        if self.after is None:
            return f"{self.architecture}{where}: {self.parameters:,} parameters, ffn.d_ff {self.before} as written"
        return (
            f"{self.architecture}{where}: ffn.d_ff {self.before} -> {self.after}, "
            f"parameters {self.parameters_before:,} -> {self.parameters:,}"
        )


def described(changes: list[Change]) -> list[str]:
    """The changes in words; one that is the same at every point of the grid once, without the point."""
    by_architecture: dict[str, list[Change]] = {}
    for change in changes:
        by_architecture.setdefault(change.architecture, []).append(change)
    found = []
    for each in by_architecture.values():
        plain = list(dict.fromkeys(str(replace(change, point="")) for change in each))
        found += plain if len(plain) == 1 else list(map(str, each))
    return found


def match(study: Study, entries: Mapping[str, tuple], points: Sequence[str], recipes: dict) -> list[Change]:
    """Adjust the feed-forwards in `recipes`; returns what was done. Raises RecipeError where it cannot be."""
    assert study.config.match is not None
    tolerance, changes, problems = study.config.match.parameters, [], []
    first = next(iter(entries))
    for point in points:
        target = parameters_of(recipes[first, point])
        for name, (index, _, _) in entries.items():
            if name == first:
                continue
            recipe = recipes[name, point]
            before, d_ff = parameters_of(recipe), getattr(recipe.model.ffn, "d_ff", None)
            if d_ff is None:
                why = "has no model.ffn.d_ff to match parameters with; leave match out, or write the widths yourself"
                problems.append(study.problem(("recipes", index), why))
                continue
            if abs(before / target - 1) <= tolerance:
                changes.append(Change(name, point, before, before, d_ff, None))
                continue
            width = _matching_width(recipe, target, tolerance)
            if width is None:
                why = (
                    f"cannot be matched to {target:,} parameters within {tolerance:.2%} by {D_FF}: it has {before:,} "
                    f"with d_ff {d_ff}; raise match.parameters, or change the recipe"
                )
                problems.append(study.problem(("recipes", index), why))
                continue
            recipes[name, point] = _with_width(recipe, width)
            after = parameters_of(recipes[name, point])
            changes.append(Change(name, point, before, after, d_ff, width))
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    return changes


def parameters_of(recipe: Recipe) -> int:
    """All parameters of a recipe's model."""
    return model_cost(recipe.model, 1).parameters["total"]


def _with_width(recipe: Recipe, d_ff: int) -> Recipe:
    assert recipe.model.ffn is not None
    ffn = recipe.model.ffn.model_copy(update={"d_ff": d_ff})
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"ffn": ffn})})


def _matching_width(recipe: Recipe, target: int, tolerance: float) -> int | None:
    """The d_ff nearest to the target, a multiple of the largest number in MULTIPLES that reaches the tolerance."""
    low, high = (parameters_of(_with_width(recipe, width)) for width in (128, 256))
    per_width = (high - low) / 128
    exact = 128 + (target - low) / per_width
    for multiple in MULTIPLES:
        width = round(exact / multiple) * multiple
        if width >= 1 and abs(parameters_of(_with_width(recipe, width)) / target - 1) <= tolerance:
            return width
    return None
