"""A local folder of transformers, perhaps somebody else's: its config, and its tensors by name, nothing unpickled.

Only regular files inside the folder are opened, up to a size limit. Errors are one line each and name the file.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from zoo.errors import shorten
from zoo.files import inside, present, read_json
from zoo.interop.errors import InteropError
from zoo.runs.weights import read_header

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MOST_CONFIG_BYTES = 4 << 20
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
REMEDY = "bring back the file as it was published"
MOST_NAMED = 12  # tensors in a message


# Of a model that reads images: what the names of its text model begin with, and those of the rest, which is left out.
TEXT, TEXT_SINCE_4_52 = "language_model.", "model.language_model."
IMAGE_TENSORS = tuple(f"{above}{part}." for above in ("", "model.") for part in ("vision_tower", "vision_model"))
IMAGE_TENSORS += ("multi_modal_projector.", "model.multi_modal_projector.")


@dataclass(frozen=True)
class Place:
    """Where a tensor is, under which name, and what the header of that file says of it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)


class SourceFolder:
    """config.json and safetensors files of a folder.  text_only: whether to see the tensors of the text model alone."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.text_only = False
        try:
            if not self.path.is_dir():
                raise InteropError(f"{path}: no such folder; name a local folder with {CONFIG} and {WEIGHTS}")
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or error
            raise InteropError(f"{shorten(str(path))}: cannot be read: {problem}") from error

    @cached_property
    def config(self) -> dict[str, Any]:
        """The keys of config.json."""
        path = self.path / CONFIG
        if not present(path, InteropError):
            ours = " It is a run folder already." if (self.path / "model.yaml").exists() else ""
            raise InteropError(f"{path}: no such file; a folder of transformers has one.{ours}")
        return read_json(path, REMEDY, InteropError, MOST_CONFIG_BYTES)

    @cached_property
    def tensors(self) -> Mapping[str, Place]:
        """Every tensor of the folder's weights, from the headers of its files."""
        if not self.text_only:
            return self._all
        return {_of_text(name): place for name, place in self._all.items() if not name.startswith(IMAGE_TENSORS)}

    @cached_property
    def _all(self) -> Mapping[str, Place]:
        index = self.path / INDEX
        if not present(index, InteropError):
            if not present(self.path / WEIGHTS, InteropError):
                raise InteropError(self._no_weights())
            return _places(self.path / WEIGHTS)
        found: dict[str, Place] = {}
        named = self._named(index)
        for file in dict.fromkeys(named.values()):
            for name, place in _places(self.path / file).items():
                if named.get(name) != file:
                    stated = f"it names {named[name]}" if name in named else "it does not have it"
                    raise InteropError(f"{index}: weight_map.{_shown(name)}: {file} holds this tensor; {stated}")
                found[name] = place
        if missing := [name for name in named if name not in found]:
            raise InteropError(f"{index}: {named[missing[0]]} lacks {names(missing)}")
        return found

    def _named(self, index: Path) -> dict[str, str]:
        """The file of each tensor, as the index states it; files of the folder itself only."""
        named = read_json(index, REMEDY, InteropError).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise InteropError(f"{index}: weight_map: must say of each tensor which file holds it")
        checked: set[str] = set()
        for file in named.values():
            if isinstance(file, str) and file in checked:
                continue
            if why := inside(self.path, file):
                raise InteropError(f"{index}: weight_map: {why}")
            if not file.endswith(".safetensors"):
                raise InteropError(f"{index}: weight_map: must name .safetensors files; found {shorten(file)}")
            checked.add(file)
        return named

    def _no_weights(self) -> str:
        why = f"{self.path}: neither {WEIGHTS} nor {INDEX}"
        others = sorted(path.name for path in self.path.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if not others:
            return why
        return (
            f"{why}; {others[0]} is a pickle, which can run code and is not read. In a place that you trust, "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW) writes safetensors"
        )

    def read(self, wanted: Iterable[str]) -> dict[str, torch.Tensor]:
        """Those tensors as float32.  Raises InteropError for a dtype that is not a float of 16 or 32 bits, or NaN."""
        from safetensors import SafetensorError, safe_open

        found: dict[str, torch.Tensor] = {}
        for name in wanted:
            place = self.tensors[name]
            try:
                with safe_open(place.file, framework="pt") as file:
                    tensor = file.get_tensor(place.name).to(torch.float32)
            except (SafetensorError, OSError) as error:
                raise InteropError(f"{place.file}: {_shown(name)} cannot be read: {error}") from error
            if not bool(tensor.isfinite().all()):
                raise InteropError(f"{place.file}: {_shown(name)} holds NaN or infinity; the file is damaged")
            found[name] = tensor
        return found


def _places(path: Path) -> dict[str, Place]:
    """The place of each tensor of a file.  Raises InteropError if the file is damaged."""
    header = read_header(path, InteropError)
    return {name: Place(path, name, tuple(shape), dtype) for name, (shape, dtype) in header.items()}


def _of_text(name: str) -> str:
    """The name in the text model: transformers had it below `language_model.`, since 4.52 its body below that."""
    return (
        f"model.{name.removeprefix(TEXT_SINCE_4_52)}" if name.startswith(TEXT_SINCE_4_52) else name.removeprefix(TEXT)
    )


def names(found: Iterable[str]) -> str:
    """Tensor names for a message, the first few."""
    listed = list(found)
    more = f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else ""
    return ", ".join(map(_shown, listed[:MOST_NAMED])) + more


def _shown(name: str) -> str:
    return shorten(name, 120)[1:-1]
