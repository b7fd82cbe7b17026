"""The last line of the YAML files in a run folder: a checksum of the lines above, so that damage shows.

A changed character of recipe.yaml or model.yaml would give another model, or other numbers, without a word.  Outside of
run folders the line is a comment: a copy of recipe.yaml can be edited like any recipe.
"""

import hashlib
import os
import re

_LAST_LINE = re.compile(r"^# checksum of the lines above: ([0-9a-f]{64})\n?\Z", re.MULTILINE)

# What lies in run folders and exported folders, and hardly beside a recipe that somebody writes.
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


def seal_problem(text: str) -> str | None:
    """What is wrong with a text by `sealed`; None if nothing is, or if it has no checksum."""
    found = _LAST_LINE.search(text)
    if found is None or found[1] == _digest(text[: found.start()]):
        return None
    return (
        "damaged or edited: the checksum in its last line does not match. Bring the file back; "
        "or, if it is as you want it, remove the last line"
    )


def in_run_folder(path: str | os.PathLike) -> bool:
    """Whether a file lies in a run folder, an exported folder, or a folder inside a run (checkpoints/)."""
    folders = {os.path.dirname(os.path.abspath(path)), os.path.dirname(os.path.realpath(path))}
    return any(
        os.path.basename(folder) in _OF_RUNS or any(os.path.lexists(os.path.join(folder, name)) for name in _OF_RUNS)
        for folder in folders
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
