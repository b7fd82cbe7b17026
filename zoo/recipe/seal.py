"""The last line of the YAML files in a run folder: a checksum of the lines above, so that damage shows.

One changed character of recipe.yaml or model.yaml could change the model or its results without an error.  Outside of
run folders the line is a comment: a copy of recipe.yaml can be edited like any recipe.
"""

import hashlib
import os
import re

EDITED = "edited"
_LAST_LINE = re.compile(rf"^# checksum of the lines above: ([0-9a-f]{{64}}|{EDITED})\s*\Z", re.MULTILINE)
_WAY_OUT = (
    f"Bring the file back; or, if it is as you want it, end it with the line # checksum of the lines above: {EDITED}"
)

# What lies in run folders and exported folders, and hardly in the folder of a recipe that somebody writes.
_OF_RUNS = (
    "checkpoints",
    "environment.json",
    "metrics.jsonl",
    "model.safetensors",
    "model.yaml",
    "modeling_zoo.py",
    "summary.json",
    "tensorboard",
)


def sealed(text: str) -> str:
    """The text with its checksum as the last line."""
    return f"{text}# checksum of the lines above: {_digest(text)}\n"


def seal_problem(text: str, required: bool = False) -> str | None:
    """What is wrong with a text by `sealed`; None if nothing is, or if it says that it was edited.

    required: True: a text without the last line is truncated; False: it may be of a version that wrote no such line.
    """
    found = _LAST_LINE.search(text)
    if found is None:
        return f"cut off: its last line, the checksum, is missing. {_WAY_OUT}" if required else None
    if found[1] in (EDITED, _digest(text[: found.start()])):
        return None
    return f"damaged or edited: the checksum in its last line does not match. {_WAY_OUT}"


def must_be_sealed(path: str | os.PathLike) -> bool:
    """Whether a file is the recipe.yaml of a run whose version ended it with a checksum: those have a data.json."""
    folder, name = os.path.split(os.path.abspath(path))
    return name == "recipe.yaml" and os.path.lexists(os.path.join(folder, "data.json")) and in_run_folder(path)


def in_run_folder(path: str | os.PathLike) -> bool:
    """Whether a file lies in a run folder, an exported folder, or a folder inside a run (checkpoints/)."""
    folders = {os.path.dirname(os.path.abspath(path)), os.path.dirname(os.path.realpath(path))}
    return any(
        os.path.basename(folder) in _OF_RUNS or any(os.path.lexists(os.path.join(folder, name)) for name in _OF_RUNS)
        for folder in folders
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
