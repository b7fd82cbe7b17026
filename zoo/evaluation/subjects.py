"""The model in a folder as a subject of evaluation, whichever kind it is."""

import os
from pathlib import Path

from zoo.errors import shorten
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.subject import Subject, ZooSubject
from zoo.evaluation.transformers_subject import TransformersSubject
from zoo.files import present
from zoo.runs.weights import no_run_folder


def load_subject(path: str | Path, device: str = "auto", dtype: str = "auto") -> Subject:
    """The model in a folder, as `kind_of_subject` says; LoadError if it cannot be loaded."""
    return kind_of_subject(path)(Path(path), device, dtype)


def kind_of_subject(path: str | Path) -> type[ZooSubject] | type[TransformersSubject]:
    """Whether a folder is a run of the zoo (model.yaml), or a local transformers folder (config.json).

    Raises EvaluationError if it is neither.
    """
    folder = Path(path)
    try:
        is_folder = folder.is_dir()
    except OSError as error:  # a name that is too long, a folder on the way that may not be entered
        raise EvaluationError(f"{shorten(str(path))}: cannot be read: {error.strerror}") from error
    if any(os.path.lexists(folder / name) for name in ("model.yaml", "recipe.yaml")):
        return ZooSubject
    if is_folder and present(folder / "config.json", EvaluationError):
        return TransformersSubject
    if not is_folder:
        raise EvaluationError(no_run_folder(path))
    raise EvaluationError(f"{path}: neither a run of the zoo (model.yaml) nor a transformers folder (config.json)")
