"""Patterns that name parameters: `train.freeze` and `train.optimizer.lr_multipliers`.  No torch at import."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from zoo.errors import Problem, RecipeError

MOST_NAMES = 6  # of the model's parameters, in a message


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a parameter: its name, or that of a module it is part of; `*` also stands for dots.

    `layers.0` and `layers.0.*` name everything in the first layer, `*norm*` every norm's scale.
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def frozen_names(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The parameters that `train.freeze` names."""
    return {name for name in names if any(matches(name, pattern) for pattern in patterns)}


def factor_of(name: str, multipliers: Mapping[str, float]) -> float:
    """The product of the factors of all patterns that name the parameter; 1 if none does."""
    factor = 1.0
    for pattern, value in multipliers.items():
        if matches(name, pattern):
            factor *= value
    return factor


def check_patterns(names: Sequence[str], train) -> None:
    """Raise RecipeError for patterns that name nothing, or leave nothing to train.

    names: of the model's parameters.  train: the recipe's `train` section.
    """
    frozen = frozen_names(names, train.freeze)
    problems = [
        Problem(f"{pattern!r} matches no parameter of the model; {_some(names)}", key="train.freeze")
        for pattern in train.freeze
        if not frozen_names(names, [pattern])
    ]
    if names and len(frozen) == len(names):
        problems.append(Problem("freezes every parameter, so that nothing is left to train", key="train.freeze"))
    for pattern in train.optimizer.lr_multipliers:
        found = frozen_names(names, [pattern])
        if not found - frozen:
            why = f"matches frozen parameters only (train.freeze): {_list(sorted(found))}"
            why = why if found else f"matches no parameter of the model; {_some(names)}"
            problems.append(Problem(f"{pattern!r} {why}", key="train.optimizer.lr_multipliers"))
    if problems:
        raise RecipeError(problems)


def frozen_parameters(recipe) -> int:
    """How many parameters `train.freeze` keeps as they are.

    Imports torch, which knows the names, only if the recipe freezes anything.  Raises RecipeError as `check_patterns`.
    """
    if not recipe.train.freeze:
        return 0
    from zoo.model import build_model

    sizes = {name: tensor.numel() for name, tensor in build_model(recipe, device="meta").named_parameters()}
    check_patterns(list(sizes), recipe.train)
    return sum(sizes[name] for name in frozen_names(sizes, recipe.train.freeze))


def _some(names: Sequence[str]) -> str:
    """A sample of the names: each kind of parameter once, of the first layer that has it."""
    kinds: dict[str, str] = {}
    for name in names:
        kinds.setdefault(".".join("N" if part.isdigit() else part for part in name.split(".")), name)
    return f"its parameters are {_list(list(kinds.values()))}"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
