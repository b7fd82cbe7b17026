"""`zoo.load(run)`: a trained model from its folder, checked before it is believed; `zoo.load_tokenizer(run)`.

Weights are read from safetensors only, which cannot run code. A folder needs model.yaml and the weights it names, so
those two files are also what one gives to somebody else.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import RecipeError, ZooError, first_mistake, shorten


class LoadError(ZooError):
    """A run folder whose model cannot be loaded; the message names the file and what is wrong with it."""

    exit_code = 2


def load(run: str | Path, *, device: str = "cpu"):
    """Load the model of a run folder: a zoo.model.Decoder in evaluation mode, weights in float32.

    run: runs/<name>, or any folder with model.yaml and the weights it names.
    Raises LoadError if a file is missing or damaged, or if the weights are not those of the recipe.
    """
    stored = Stored.of(run)
    from safetensors.torch import load_file

    from zoo.model import build_model

    model = build_model(stored.model, device="meta")
    _check_tensors(stored.weights, model.state_dict())
    stored.check_digest()
    model.load_state_dict(load_file(stored.weights, device=device), assign=True)
    model.loaded_from = stored.folder
    return model.eval()


@dataclass(frozen=True)
class Stored:
    """A run folder's model before its weights are read: its config, and the safetensors file."""

    folder: Path
    model: Any  # zoo.recipe.ModelConfig
    weights: Path
    sha256: object

    @classmethod
    def of(cls, run: str | Path) -> "Stored":
        """Raises LoadError if the folder has no usable model.yaml, or not the weights that it names."""
        folder = Path(run)
        description = _description(folder)
        weights = _weights(folder, description)
        return cls(folder, _model_config(folder, description), weights, description["weights"].get("sha256"))

    def tensors(self) -> dict[str, tuple[list[int], str]]:
        """Shape and dtype of each tensor, from the file's header.  Raises LoadError for a damaged file."""
        return read_header(self.weights)

    def check_digest(self) -> str:
        """The SHA-256 of the weights; LoadError unless it is the one that model.yaml states."""
        return _check_digest(self.weights, self.sha256)


def load_tokenizer(run: str | Path):
    """The tokenizer of a run folder, as in zoo/data/tokenizers.py; None if the run's rows were plain numbers.

    Raises LoadError if the folder does not say, or lacks the tokenizer's file; DataError if that file is damaged.
    """
    folder = Path(run)
    description = _description(folder)
    if "tokenizer" not in description:
        raise LoadError(
            f"{folder / 'model.yaml'}: tokenizer is missing: {{kind: byte}}, {{kind: bpe}}, or null for none"
        )
    section = description["tokenizer"]
    if section is None:
        return None
    kind = section.get("kind") if isinstance(section, dict) else None
    if kind not in ("byte", "bpe", "huggingface") and not (isinstance(kind, str) and _has_tokenizer_files(folder)):
        raise LoadError(f"{folder / 'model.yaml'}: tokenizer.kind must be byte, bpe or huggingface; found {kind!r}")
    from zoo.data.config import HuggingFaceTokenizer
    from zoo.data.tokenizers import Bytes, load_huggingface
    from zoo.files import present

    if kind == "byte":
        return Bytes()
    if not present(folder / "tokenizer.json", LoadError):
        source = "data_cache/bpe-*/" if kind == "bpe" else str(section.get("path"))
        raise LoadError(
            f"{folder / 'tokenizer.json'}: no such file; runs of earlier versions lack it: copy tokenizer.json and "
            f"tokenizer_config.json from {source} into the run folder"
        )
    check_tokenizer(folder)
    return load_huggingface(HuggingFaceTokenizer(kind="huggingface", path=str(folder)))


def _has_tokenizer_files(folder: Path) -> bool:
    """Whether the run folder holds the files of its tokenizer, which are read the same for every kind."""
    from zoo.files import present

    return present(folder / "tokenizer.json", LoadError)


def check_tokenizer(run: str | Path) -> None:
    """Raise LoadError for no usable model.yaml, and DataError unless the tokenizer's files are those training wrote.

    Nothing is checked for bytes, for plain numbers, and for runs of versions that kept no checksums.
    """
    from zoo.data.tokenizers import check_files

    folder = Path(run)
    expected = _description(folder).get("tokenizer_sha256")
    check_files(folder, expected, "bring back the files that training wrote")


def recorded_digest(run: str | Path) -> object:
    """The SHA-256 that model.yaml states for the weights.  Raises LoadError if there is no usable model.yaml."""
    section = _description(Path(run))["weights"]
    return section.get("sha256") if isinstance(section, dict) else None


def no_run_folder(path: str | Path) -> str:
    """What to say of a path that should be a run folder and is no folder: nothing, or a recipe."""
    if os.path.isfile(path) and str(path).endswith((".yaml", ".yml")):
        return f"{path}: is a recipe, not a run folder; zoo train {path} makes runs/<name>"
    return f"{path}: no such folder; zoo train makes runs/<name>"


def _description(folder: Path) -> dict:
    """model.yaml as a mapping."""
    from zoo.files import present

    path = folder / "model.yaml"
    try:
        is_folder = folder.is_dir()
        has_model = is_folder and present(path, LoadError)
    except (OSError, ValueError) as error:  # a name that is too long or has a NUL, or a folder not to be entered
        problem = getattr(error, "strerror", None) or error
        raise LoadError(f"{shorten(str(folder))}: cannot be read: {problem}") from error
    if not is_folder:
        raise LoadError(no_run_folder(folder))
    if not has_model and (folder / "checkpoints").is_dir():
        raise LoadError(
            f"{folder}: this run is not finished, so it has no {path.name} and weights yet; "
            "the same `zoo train` continues it"
        )
    if not has_model:
        raise LoadError(f"{path}: no such file; not a run folder")
    from zoo.recipe.yaml_reader import read_mapping

    try:
        description = read_mapping(path).plain()
    except RecipeError as error:
        raise LoadError(str(error)) from error
    if not {"model", "weights"} <= set(description):
        raise LoadError(f"{path}: must have the keys model and weights")
    return description


def _weights(folder: Path, description: dict) -> Path:
    """The weights' path, which must lie in the folder itself."""
    from zoo.files import check_file

    section = description["weights"]
    name = section.get("file") if isinstance(section, dict) else None
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise LoadError(f"{folder / 'model.yaml'}: weights.file must name a .safetensors file here; found {name!r}")
    check_file(folder / name, LoadError)
    return folder / name


def _model_config(folder: Path, description: dict):
    from pydantic import ValidationError

    from zoo.recipe import ModelConfig

    path = folder / "model.yaml"
    _import_plugins(path, description.get("plugins") or [])
    try:
        return ModelConfig.model_validate_json(json.dumps(description["model"]), strict=True)
    except ValidationError as error:
        raise LoadError(f"{path}: {first_mistake(error, 'model', found=True)}") from error


def _import_plugins(path: Path, plugins: Any) -> None:
    """Import the plugins that a model.yaml names, if they are installed or were named by the user."""
    from zoo.blocks.plugins import load_plugins_of_run

    if not (isinstance(plugins, list) and all(isinstance(name, str) for name in plugins)):
        raise LoadError(f"{path}: plugins: must be a list of module names; found {shorten(plugins)}")
    try:
        load_plugins_of_run(plugins)
    except ValueError as error:
        raise LoadError(f"{path}: plugins: {error}") from error


def _check_tensors(path: Path, expected: dict) -> None:
    """Compare names, shapes and dtypes in the file's header with the model's, before anything is read or allocated."""
    found = read_header(path)
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is not part of the model" for name in found if name not in expected]
    for name, tensor in expected.items():
        wanted = (list(tensor.shape), _DTYPES.get(str(tensor.dtype), str(tensor.dtype)))
        if name in found and found[name] != wanted:
            wrong.append(f"{name} is {_show(found[name])}, the recipe says {_show(wanted)}")
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise LoadError(
            f"{path}: weights of another recipe, or of another version of the zoo: {'; '.join(wrong[:3])}{more}"
        )


def read_header(path: Path, error: type[ZooError] = LoadError) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of each tensor of a safetensors file.  Raises `error` if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    from zoo.files import check_file

    check_file(path, error)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: _shape_and_dtype(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as reason:
        raise error(f"{path}: damaged, or not a safetensors file: {reason}") from reason


_DTYPES = {"torch.float32": "F32", "torch.float64": "F64", "torch.bfloat16": "BF16", "torch.float16": "F16"}


def _shape_and_dtype(tensor) -> tuple[list[int], str]:
    return list(tensor.get_shape()), tensor.get_dtype()


def _show(tensor: tuple[list[int], str]) -> str:
    return f"{tensor[1]} {tensor[0]}"


def _check_digest(path: Path, expected: object) -> str:
    """safetensors notices a truncated file but not a flipped bit; the recorded SHA-256 does."""
    from zoo.files import sha256

    if expected is None:
        raise LoadError(f"{path.with_name('model.yaml')}: weights.sha256 is missing, so the weights cannot be checked")
    if (found := sha256(path)) != expected:
        raise LoadError(f"{path}: damaged: SHA-256 is {found[:16]}..., model.yaml says {str(expected)[:16]}...")
    return found
