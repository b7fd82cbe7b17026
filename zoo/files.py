"""Files that are whole whenever they are there: written under another name, synced, renamed."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from zoo.errors import ZooError


def replace_durably(temporary: Path, final: Path) -> None:
    """Rename `temporary` to `final` so that after a crash or power loss `final` is the old file or the new, whole."""
    sync(temporary)
    os.replace(temporary, final)
    sync(final.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `replace_durably` does."""
    temporary = path.with_name(f".writing-{os.getpid()}-{path.name}")
    temporary.write_text(text, encoding="utf-8")
    replace_durably(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as `replace_durably` does."""
    write_text(path, json.dumps(value, indent=1))


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.  Raises ZooError if something else has damaged it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise ZooError(
            f"{path}: damaged, not JSON: {error}; remove it, and the same command goes on without"
        ) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_files(folder: Path) -> None:
    """Force the content of a folder's files, and its entries, to disk."""
    for path in [*filter(Path.is_file, folder.iterdir()), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
