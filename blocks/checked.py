"""What configs are made of: the bounds of each kind of number, and configs that list all their problems. No torch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from zoo.blocks.about import About

FieldProblem = tuple[tuple[str | int, ...], str]  # (path of the key inside the config, what is wrong with it)


# The bounds of each kind of number. Types are strict: a recipe's "16" or true is no number.
Count = Annotated[int, Field(strict=True, ge=1, le=4096)]  # heads, blocks
Size = Annotated[int, Field(strict=True, ge=1, le=65_536)]  # channels, tokens of a block
Length = Annotated[int, Field(strict=True, ge=1, le=2**30)]  # tokens of a context
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]


class Checked(BaseModel):
    """A config that lists all its problems at once, each with the key it belongs to.

    `problems(d_model)` returns them; with d_model None, only those that do not depend on it, which are also raised when
    the config is made. Subclasses add theirs to `super().problems(d_model)`.
    """

    # defer_build: a validator is made when it is first used, and most configs and sets of fields are not, in a command.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    def problems(self, d_model: int | None = None) -> list[FieldProblem]:
        return []

    @model_validator(mode="after")
    def _refuse_problems(self) -> Self:
        if found := self.problems():
            lines = [
                InitErrorDetails(type=PydanticCustomError("block", "{why}", {"why": why}), loc=path, input=self)
                for path, why in found
            ]
            raise ValidationError.from_exception_data(type(self).__name__, lines)
        return self


class Fact(NamedTuple):
    """What every part of a family states: its name in messages, what returns it, and its allowed types."""

    name: str
    ask: Callable[[], Any]
    may_be: tuple[type, ...]


Facts = Iterator[Fact]
NUMBER = (int, float)
ROW = 64  # tokens of the row that facts which depend on one are asked for


class Kinded(Checked):
    """A config that says what it is. Last of the bases, so that `kind` is the first field."""

    about: ClassVar[About] = About()  # what its page in the documentation says beyond fields and cost

    kind: str

    def facts(self, d_model: int, seq_len: int, part: str | None = None) -> Facts:
        """What a part of this family must state; a part of another package is asked when its recipe is read.

        Each fact is asked before the next one is made, so a later one may rely on it.  seq_len: the longest row that
        the model is made for.  part: of a block that has several.
        """
        yield from ()


Made = TypeVar("Made")


def resolved(made: type[Made], values: Mapping[str, Any]) -> Made:
    """The dataclass `made` of those of the values that are fields of it: a config with every number known."""
    return made(**{field.name: values[field.name] for field in fields(made)})  # type: ignore[arg-type] # a dataclass
