"""Checkpoints of a run: which is the newest good one. Composer writes them; composer_fixes.py makes that atomic.

Composer's own `latest` link is not used: it is replaced in two steps, so a kill can lose it, and a run without it
starts over in silence. Here the folder is read instead, and every file is verified before it is trusted.
"""

import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import ZooError
from zoo.files import FileError, check_file

FILENAME = "ep{epoch}-ba{batch}-rank{rank}.pt"
_NAME = re.compile(r"ep(\d+)-ba(\d+)-rank0\.pt")
TEMPORARY = ".writing-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file and the number of batches done when it was written."""

    path: Path
    batch: int


def listed(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a folder by name alone, oldest first."""
    found = []
    for path in folder.glob("*.pt"):
        if match := _NAME.fullmatch(path.name):
            found.append((int(match[2]), int(match[1]), path))
    return [Checkpoint(path, batch) for batch, _, path in sorted(found)]


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None.

    torch.save writes a zip archive with a CRC-32 of every tensor: a truncated file and a flipped bit both show.  It
    compresses nothing; an archive that unpacks to more bytes than it has is none of its, and is not unpacked.
    """
    try:
        size = check_file(path)
    except FileError as error:
        return str(error).removeprefix(f"{path}: ")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                return "it unpacks to more bytes than it has, which no checkpoint does"
            bad = archive.testzip()
    except Exception as error:  # a damaged header can raise nearly anything: BadZipFile, EOFError, NotImplementedError
        return f"{type(error).__name__}: {error}"
    return None if bad is None else f"the checksum of {bad} does not match"


def newest_good(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are renamed to *.bad and named through `say`.

    None: there is no checkpoint yet.  Raises ZooError if there were some and all of them are damaged: training from
    the start instead would throw work away in silence.
    """
    if not folder.is_dir():
        return None
    try:
        os.listdir(folder)
    except OSError as error:  # glob would find nothing there, and the run would start over
        raise ZooError(f"{folder}: the folder cannot be read: {error.strerror}") from error
    for left in folder.glob(f"{TEMPORARY}*"):  # a write that a kill cut short
        left.unlink()
    for checkpoint in reversed(listed(folder)):
        reason = damage(checkpoint.path)
        if reason is None:
            return checkpoint
        bad = checkpoint.path.with_name(checkpoint.path.name + ".bad")
        checkpoint.path.replace(bad)
        say(f"checkpoint of batch {checkpoint.batch} is damaged ({reason}); renamed to {bad}")
    if any(folder.glob("*.bad")):
        raise ZooError(
            f"{folder}: every checkpoint is damaged (*.bad), so the run cannot be resumed. "
            f"To start over, remove {folder.parent}"
        )
    return None


def where_it_continues(folder: Path) -> str:
    """A sentence about the newest checkpoint of a folder, by name alone, for messages."""
    found = listed(folder)
    if not found:
        return "no checkpoint has been written yet, so the same command starts again"
    newest = found[-1]
    return f"checkpoint of batch {newest.batch} saved in {newest.path}; the same command continues from there"
