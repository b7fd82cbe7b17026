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
    """The model in a folder: a run of the zoo (model.yaml), or a local transformers folder (config.json).

    Raises EvaluationError if it is neither, LoadError if it cannot be loaded.
    """
    folder = Path(path)
    try:
        is_folder = folder.is_dir()
    except OSError as error:  # a name that is too long, a folder on the way that may not be entered
        raise EvaluationError(f"{shorten(str(path))}: cannot be read: {error.strerror}") from error
    if any(os.path.lexists(folder / name) for name in ("model.yaml", "recipe.yaml")):
        return ZooSubject(folder, device, dtype)
    if is_folder and present(folder / "config.json", EvaluationError):
        return TransformersSubject(folder, device, dtype)
    if not is_folder:
        raise EvaluationError(no_run_folder(path))
    raise EvaluationError(f"{path}: neither a run of the zoo (model.yaml) nor a transformers folder (config.json)")
