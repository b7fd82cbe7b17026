"""Local files of a source: finding them, cutting them into ranges, reading them; plain or compressed."""

import glob
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from zoo.data.config import Files
from zoo.data.errors import DataError

COMPRESSED = (".gz", ".zst", ".bz2", ".lz4")
SUFFIXES = {"text": (".txt", ".text", ".md"), "jsonl": (".jsonl", ".ndjson", ".json"), "parquet": (".parquet",)}


def local_path(text: str | Path) -> Path:
    """The path that a recipe means: `~` and `~name` are home folders.  Raises DataError if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(f"{text}: there is no such user's home folder") from error


def find_files(source: Files) -> list[Path]:
    """Return the files that `paths` name, each once, in the order named; sorted inside a folder or glob.

    Raises DataError for a path that names nothing, and for an empty file.
    """
    found: dict[Path, None] = {}
    for pattern in source.paths:
        matches = _matches(local_path(pattern), source.kind)
        if not matches:
            raise DataError(f"source {source.kind}: {pattern}: {_nothing_there(pattern, source.kind)}")
        found |= dict.fromkeys(matches)
    for path in found:
        _check_readable(path)
    return list(found)


def _matches(path: Path, kind: str) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        inner = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        return sorted(p for p in inner if _bare_suffix(p) in SUFFIXES[kind])
    return sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())


def _bare_suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _nothing_there(pattern: str, kind: str) -> str:
    if local_path(pattern).is_dir():
        return f"the folder holds no {', '.join(SUFFIXES[kind])} files"
    if glob.has_magic(pattern):
        return f"no file matches (relative to {Path.cwd()})"
    return f"no such file or folder (relative to {Path.cwd()})"


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise DataError(f"{path}: the file is empty")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def ranges(path: Path, separator: bytes, piece_bytes: int) -> Iterator[tuple[int, int | None]]:
    """Cut a file into ranges that begin after a separator; a compressed file is one range."""
    if path.suffix in COMPRESSED:
        yield 0, None
        return
    size, start = path.stat().st_size, 0
    with path.open("rb") as file:
        while start < size:
            end = min(_after_separator(file, separator, start + piece_bytes), size)
            yield start, end
            start = end


def _after_separator(file: BinaryIO, separator: bytes, position: int) -> int:
    """Return where the first separator that begins at or after `position` ends, or a place past the file's end."""
    tail = b""
    file.seek(position)
    while chunk := file.read(1 << 16):
        at = (tail + chunk).find(separator)
        if at >= 0:
            return position + at + len(separator)
        kept = (tail + chunk)[-(len(separator) - 1) :] if len(separator) > 1 else b""
        position += len(tail) + len(chunk) - len(kept)
        tail = kept
    return position + len(tail) + 1


def _open(path: Path) -> BinaryIO:
    if path.suffix not in COMPRESSED:
        return path.open("rb")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="detect"))


def _reading(path: Path, read: Callable[[BinaryIO], bytes]) -> bytes:
    try:
        with _open(path) as file:
            return read(file)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_all(path: Path) -> bytes:
    """Return the content of a file."""
    return _reading(path, lambda file: file.read())


def read_range(path: Path, start: int, end: int | None) -> bytes:
    """Return bytes start..end of a file, the whole content when end is None."""
    if end is None:
        return read_all(path)
    return _reading(path, lambda file: (file.seek(start), file.read(end - start))[1])


def lines(path: Path, start: int, end: int | None) -> Iterator[bytes]:
    """Yield the lines of a range of a file, each with its line end."""
    if end is not None:
        yield from io.BytesIO(read_range(path, start, end))
        return
    try:
        with _open(path) as file:
            yield from file
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def not_utf8(path: Path, offset: int, data: bytes) -> DataError:
    """Return the error for bytes at `offset` that are not UTF-8; `data` begins with them."""
    return DataError(f"{path}: byte {offset} is not UTF-8 text (0x{data[:1].hex()}); convert the file, or leave it out")
