"""What a family of published models is: how its config.json and its tensors correspond to a recipe and to ours.

A family is one file in zoo/interop/families/ with one object, FAMILY.  No torch at import.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.interop.keys import Keys

if TYPE_CHECKING:
    import torch

    from zoo.recipe import ModelConfig


class Form:
    """How a tensor of theirs is converted to ours.  The base class changes nothing."""

    def to_ours(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The tensor as the zoo orders and scales it."""
        return tensor

    def to_theirs(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The inverse of `to_ours`."""
        return tensor


@dataclass(frozen=True)
class Interleaved(Form):
    """Rows of heads in which channels 2i and 2i + 1 are a rotary pair; in ours i and i + rotary_dim / 2 are one.

    head_dim: rows of a head, of which the `rotary_dim` rows from `start` on are rotated.
    """

    head_dim: int
    rotary_dim: int
    start: int = 0

    def to_ours(self, tensor):
        before, turned, after = self._parts(tensor)
        return concatenated([before, turned.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2), after]).flatten(0, 1)

    def to_theirs(self, tensor):
        before, turned, after = self._parts(tensor)
        return concatenated([before, turned.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2), after]).flatten(0, 1)

    def _parts(self, tensor):
        end = self.start + self.rotary_dim
        return tensor.unflatten(0, (-1, self.head_dim)).split([self.start, self.rotary_dim, self.head_dim - end], 1)


@dataclass(frozen=True)
class ByHead(Form):
    """Rows ordered by head in theirs, each head with parts of these widths; in ours, all heads of a part follow."""

    n_heads: int
    widths: tuple[int, ...]

    def to_ours(self, tensor):
        parts = tensor.unflatten(0, (self.n_heads, -1)).split(self.widths, 1)
        return concatenated([part.flatten(0, 1) for part in parts], 0)

    def to_theirs(self, tensor):
        parts = tensor.split([self.n_heads * width for width in self.widths])
        return concatenated([part.unflatten(0, (self.n_heads, -1)) for part in parts]).flatten(0, 1)


@dataclass(frozen=True)
class OneLess(Form):
    """Scales of norms that theirs stores minus 1 (Gemma)."""

    def to_ours(self, tensor):
        return tensor + 1

    def to_theirs(self, tensor):
        return tensor - 1


def concatenated(parts: "list[torch.Tensor]", dim: int = 1) -> "torch.Tensor":
    """torch.cat, imported when a weight is converted."""
    import torch

    return torch.cat(parts, dim)


SAME = Form()


@dataclass(frozen=True)
class Theirs:
    """A tensor of theirs.

    rows: its first size, needed only where several make up ours.  shape: its sizes where a form changes them.
    """

    name: str
    rows: int | None = None
    form: Form = SAME
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Rule:
    """Tensors of ours, concatenated by rows, equal tensors of theirs, concatenated by rows."""

    ours: tuple[str, ...]
    theirs: tuple[Theirs, ...]

    @classmethod
    def same(cls, ours: str, theirs: str, form: Form = SAME) -> "Rule":
        """One tensor."""
        return cls((ours,), (Theirs(theirs, form=form),))


class Family(ABC):
    """One `model_type` of transformers."""

    model_type: ClassVar[str]
    architecture: ClassVar[str]  # the class of transformers that has the head of a language model
    defaults: ClassVar[Mapping[str, Any]]  # what its config class takes for keys that are not written
    # Whether it was published with code of its own, which `auto_map` names, and of which this family is a copy.
    own_code: ClassVar[bool] = False
    multi_token: ClassVar[bool] = False  # whether its format has modules that predict further tokens

    @abstractmethod
    def read(self, keys: Keys) -> dict[str, Any]:
        """The `model` section of the recipe.  Raises InteropError, naming the key, for what no recipe can say."""

    @abstractmethod
    def write(self, model: "ModelConfig") -> dict[str, Any]:
        """Keys of the config.json that comes nearest to a model; whether it is the same model is checked by `read`.

        Raises InteropError if the model has a part that the family has nothing like.
        """

    @abstractmethod
    def rules(self, model: "ModelConfig") -> Iterator[Rule]:
        """How the tensors of a model that `read` made correspond."""

    def as_stored(self, model: "ModelConfig", names: Collection[str]) -> "ModelConfig":
        """The model that a folder holds, which may have no modules of `multi_token`, or some that its config omits.

        names: of the folder's tensors.
        """
        return model

    def derived(self, name: str) -> bool:
        """Whether a tensor of theirs follows from the config, so that it need not be read."""
        return name.endswith(".rotary_emb.inv_freq")
