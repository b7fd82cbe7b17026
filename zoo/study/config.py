"""The study file: which recipes, seeds and settings, checked with the place of every mistake. No torch."""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, field_validator, model_validator

from zoo.errors import Problem, RecipeError, ZooError, shorten
from zoo.evaluation.groups import TaskEntry
from zoo.recipe.checking import locate, translate
from zoo.recipe.yaml_reader import Node, beside, read_recipe
from zoo.training.config import CountOrAuto

NAME = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
SHAPE = "a study is a mapping with the keys name, recipes, seeds"


class StudyError(ZooError):
    """A study that cannot be run or reported; the message says why, and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _share(value: Any) -> float:
    """`1%` or 0.01, as a share of 1."""
    number = value
    if isinstance(value, str) and value.endswith("%"):
        try:
            number = float(value[:-1]) / 100
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < 1:
        raise ValueError(f"must be a share between 0% and 100%, such as 1%; found {shorten(value)}")
    return float(number)


Share = Annotated[float, PlainValidator(_share)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Settings = dict[str, Any]


class MatchConfig(_Section):
    """What is made equal between the architectures."""

    parameters: Share = Field(description="Largest difference in parameters from the first architecture, such as 1%.")


class MeasureConfig(_Section):
    """Speeds of each architecture, measured at the end, one after the other, while nothing else runs."""

    contexts: list[Annotated[int, Field(ge=1)]] = Field(
        [2048], min_length=1, description="Decoding: tokens of the prompt."
    )
    batches: list[Annotated[int, Field(ge=1)]] = Field(
        [1], min_length=1, description="Decoding: rows decoded together."
    )
    training: bool = Field(
        False, description="Also measure training, in tokens/s, as zoo bench train does, on the device of the runs."
    )


def _without_seed(settings: Settings) -> Settings:
    if "seed" in settings:
        raise ValueError("seed cannot be set, because a study trains with each of its seeds; write seeds: [...]")
    return settings


class Entry(_Section):
    """One architecture: a recipe, the name it has in the study, and keys that differ from the file."""

    recipe: str | None = Field(None, description="Path relative to the study file. Default: the study's base.")
    name: str | None = Field(None, pattern=NAME, max_length=60, description="Default: the recipe's own name.")
    set: Settings = Field({}, description="Keys of this architecture, as after --set.")

    @field_validator("set")
    @classmethod
    def _no_seed(cls, value: Settings) -> Settings:
        return _without_seed(value)


def _read_entry(value: Any) -> Entry:
    if isinstance(value, Entry):
        return value
    if isinstance(value, str) and value:
        return Entry(recipe=value)
    if not isinstance(value, dict):
        raise ValueError(f"must be the path of a recipe, or a mapping with name and set; found {shorten(value)}")
    return Entry.model_validate_json(json.dumps(value), strict=True)


class StudyConfig(_Section):
    """Architectures, seeds and axes; the runs follow from them."""

    name: str = Field(pattern=NAME, max_length=100, description="Name of the study, and of its folder.")
    summary: str = Field("", description="One line on what the study asks.")
    base: str | None = Field(None, description="Recipe of the entries that name none; relative to the study file.")
    recipes: list[Annotated[Entry, PlainValidator(_read_entry)]] = Field(
        min_length=1, description="The architectures; the others are compared with the first."
    )
    seeds: list[Seed] = Field(min_length=1, description="Seeds; the first choose_seeds of them choose from the grid.")
    choose_seeds: Annotated[int, Field(ge=1)] = Field(
        1, description="How many of the first seeds choose the point of the grid. They are in no mean."
    )
    set: Settings = Field({}, description="Keys of every run, as after --set.")
    grid: dict[str, list[Any]] = Field({}, description="Key -> values to choose from, for each architecture.")
    match: MatchConfig | None = Field(None, description="What is made equal by adjusting model.ffn.d_ff.")
    tasks: list[TaskEntry] = Field([], description="Evaluation tasks of every run, as eval.tasks.")
    measure: MeasureConfig | None = Field(None, description="Speeds to measure at the end.")
    jobs: CountOrAuto = Field("auto", description="Runs at a time on this machine (on each GPU, where there are any).")
    out: str | None = Field(None, description="Folder of the study. Default: runs/studies/ and its name.")

    @field_validator("set")
    @classmethod
    def _no_seed(cls, value: Settings) -> Settings:
        return _without_seed(value)

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: list[int]) -> list[int]:
        if twice := [seed for i, seed in enumerate(value) if seed in value[:i]]:
            raise ValueError(f"must be different; {twice[0]} is there twice")
        return value

    @field_validator("grid")
    @classmethod
    def _values(cls, value: dict[str, list]) -> dict[str, list]:
        for key, values in value.items():
            if key == "seed":
                raise ValueError("seed cannot be a key of the grid; write seeds: [...]")
            if not values:
                raise ValueError(f"{key}: must have at least 1 value")
            shown = [json.dumps(each, sort_keys=True) for each in values]
            if len(set(shown)) < len(shown):
                raise ValueError(f"{key}: must have different values")
        return value

    @model_validator(mode="after")
    def _agrees(self) -> "StudyConfig":
        if self.searches and len(self.seeds) <= self.choose_seeds:
            raise ValueError(
                f"seeds: must be more than choose_seeds ({self.choose_seeds}), because those that choose from the "
                f"grid are in no mean; found {len(self.seeds)}"
            )
        return self

    @property
    def searches(self) -> bool:
        """Whether the grid has a choice to make."""
        return any(len(values) > 1 for values in self.grid.values())

    @property
    def choosing(self) -> list[int]:
        """The seeds on which the point of the grid is chosen; none where there is nothing to choose."""
        return self.seeds[: self.choose_seeds] if self.searches else []

    @property
    def counting(self) -> list[int]:
        """The seeds whose results are reported."""
        return self.seeds[len(self.choosing) :]


@dataclass(frozen=True)
class Study:
    """A study file that was read: where it lies, what it says, and the place of each of its values."""

    path: Path
    config: StudyConfig
    root: Node
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the runs and the report go, relative to the working directory, as run folders are."""
        return Path(self.config.out) if self.config.out else Path("runs") / "studies" / self.config.name

    def recipe_path(self, name: str) -> str:
        """The path of a recipe that the study file names; one of the package keeps its name."""
        return beside(self.path, name)

    def command(self) -> str:
        """The command that runs the study."""
        options = [part for override in self.overrides for part in ("--set", override)]
        return shlex.join(["zoo", "study", "run", str(self.path), *options])

    def problem(self, path: tuple[str | int, ...], message: str) -> Problem:
        """A mistake at a key of the study file."""
        return locate((path, "value", message), self.root)


def load_study(path: str | os.PathLike, overrides: tuple[str, ...] | list[str] = ()) -> Study:
    """Read and check a study file.  overrides: `key.path=value` of the study, as after --set.

    Raises RecipeError with every mistake found, each with its place. The recipes are read by `expand`.
    """
    root = read_recipe(path, overrides, shape=SHAPE)
    data = root.plain()
    try:
        config = StudyConfig.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        found = [locate(line, root) for line in translate(error, data, lambda at: _known_keys(at, data))]
        raise RecipeError(sorted(dict.fromkeys(found), key=lambda p: (p.line or 0, p.column or 0))) from error
    study = Study(Path(path), config, root, tuple(overrides))
    lacking = [i for i, entry in enumerate(config.recipes) if entry.recipe is None and config.base is None]
    if lacking:
        raise RecipeError(
            [study.problem(("recipes", i), "names no recipe, and the study has no base") for i in lacking]
        )
    return study


def _known_keys(path: tuple[str | int, ...], data: dict[str, Any]) -> list[str]:
    if path[:1] == ("tasks",):
        from zoo.recipe.schema import known_keys, schema_definitions

        return known_keys(("eval", *path), {"eval": data}, schema_definitions())
    sections: dict[tuple, type[BaseModel]] = {
        (): StudyConfig,
        ("match",): MatchConfig,
        ("measure",): MeasureConfig,
    }
    if path[:1] == ("recipes",) and len(path) == 2:
        return list(Entry.model_fields)
    known = list(sections[path].model_fields) if path in sections else []
    return [*known, "extends"] if path == () else known
