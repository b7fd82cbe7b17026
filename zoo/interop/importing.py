"""`zoo import FOLDER RUN`: a local folder of transformers as a run folder, which every other command takes.

Nothing is unpickled and no code of the folder is run.  Everything is checked before the first file is written.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import shorten
from zoo.files import write_text
from zoo.interop.architecture import has_encoder, read_config
from zoo.interop.errors import InteropError
from zoo.interop.keys import DROPOUTS
from zoo.new_folder import check_new_folder, new_folder
from zoo.recipe.seal import sealed

SMALL = 1 << 20  # parameters that may be missing before a model is laid out, which then names them
ROW = 4096  # most tokens of a training row in the recipe that is written


@dataclass
class Imported:
    """What an import wrote.  notes: what the user should know of it."""

    run: Path
    model: Any  # zoo.recipe.ModelConfig
    files: list[Path]
    notes: list[str] = field(default_factory=list)


def import_folder(
    folder: str | Path, run: str | Path, *, ignored: Iterable[str] = (), end_of_document: str | None = None
) -> Imported:
    """Read config.json, safetensors and tokenizer.json of a folder, and write a run folder.

    run: a new folder.  ignored: keys of config.json that the user says do not matter.  end_of_document: the token that
    ends a document, where the tokenizer does not name it.
    Raises InteropError, naming file and key, for what cannot be read or expressed; then nothing is written.
    """
    from zoo.interop.folder import CONFIG, SourceFolder
    from zoo.interop.tokenizer import missing_note, read_tokenizer
    from zoo.interop.weights import check_tensors, to_ours

    source, run = SourceFolder(folder), Path(run)
    family, described = read_config(source.config, str(source.path / CONFIG), ignored)
    source.text_only = has_encoder(source.config)
    check_new_folder(run, InteropError)
    model = family.as_stored(described, source.tensors)
    _check_size(source, model)
    rules, shapes = list(family.rules(model)), _shapes(model)
    check_tensors(source, family, rules, shapes)
    tokenizer = read_tokenizer(source.path, source.config, model.vocab_size, end_of_document)
    recipe = recipe_of(run, model, f"Imported from {source.path} ({family.architecture}).", tokenizer)
    state = to_ours(source, rules, shapes)
    with new_folder(run, InteropError):
        write_run(run, recipe, state, tokenizer)
    notes = [] if tokenizer else [missing_note(source.path)]
    if source.text_only:
        notes.append(f"{source.path} reads images as well: only its text model ({family.model_type}) is imported")
    written = source.config["text_config"] if source.text_only else source.config
    notes += [
        f"{name} is {shorten(written[name])} in {CONFIG}: a recipe has no dropout, so further training has none"
        for name in DROPOUTS
        if written.get(name)
    ]
    if described.multi_token and not model.multi_token:
        why = "holds no tensors of the modules that predict further tokens"
        notes.append(f"{source.path} {why}, so the recipe has no multi_token")
    return Imported(run, model, sorted(run.iterdir()), notes)


def write_run(run: Path, recipe: Any, state: dict, tokenizer: Any) -> None:
    """recipe.yaml, model.safetensors, model.yaml and the tokenizer's files, as training leaves them."""
    from zoo.runs.folder import RunFolder
    from zoo.training.final_weights import export

    files = RunFolder(run)
    write_text(files.recipe, sealed(recipe.dump()))
    export(files, recipe, state, tokenizer)


def _check_size(source: Any, model: Any) -> None:
    """Raise InteropError if the files cannot hold the model that config.json describes, before it is laid out."""
    from zoo.counting.model_cost import model_cost

    described = model_cost(model, 1).parameters["total"]
    held = sum(place.elements for place in source.tensors.values())
    if described > 2 * held + SMALL:
        found = f"describes a model of {described:,} parameters; its safetensors files hold {held:,} numbers"
        raise InteropError(f"{source.path}: config.json {found}")


def _shapes(model: Any) -> dict[str, list[int]]:
    from zoo.model import build_model

    return {name: list(tensor.shape) for name, tensor in build_model(model, device="meta").state_dict().items()}


def recipe_of(run: Path, model: Any, summary: str, tokenizer: Any) -> Any:
    """A recipe that trains the weights of a run further: rows of at most ROW tokens of text in its tokenizer."""
    from zoo.data.places import absolute
    from zoo.data.tokenizers import Bytes
    from zoo.recipe import Recipe

    folder = absolute(str(run))
    data: dict[str, Any] = {"seq_len": min(ROW, model.max_seq_len)}
    if isinstance(tokenizer, Bytes):
        data |= {"tokenizer": {"kind": "byte"}}
    elif tokenizer is not None:
        data |= {"tokenizer": {"kind": "huggingface", "path": folder}}
    else:  # rows of numbers, which the user has to name
        data |= {"source": {"kind": "mds", "local": "rows"}, "validation_fraction": 0}
    section = {
        "name": recipe_name(run),
        "summary": summary,
        "model": model.model_dump(),
        "data": data,
        "train": {"init_from": folder},
    }
    return Recipe.model_validate(section)


def recipe_name(run: Path) -> str:
    """The name of a run folder as the name of a recipe."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.name or run.resolve().name)[:100].lstrip("._-")
    return name or "imported"


def import_command(folder: Path, run: Path, ignored: list[str], end_of_document: str | None) -> tuple[str, list[str]]:
    """`zoo import`: import, and say what was written and what can be done with it."""
    imported = import_folder(folder, run, ignored=ignored, end_of_document=end_of_document)
    sizes = ", ".join(f"{path.name} ({path.stat().st_size:,} bytes)" for path in imported.files)
    lines = [
        f"wrote {run}: {sizes}",
        f"layers    {imported.model.layers}",
        f"use it:   zoo generate {run}, zoo eval {run}, zoo show {run}/recipe.yaml",
        f"train it: zoo train {run}/recipe.yaml --run-dir NEW   (its train.init_from names these weights)",
    ]
    return "\n".join(lines), imported.notes
