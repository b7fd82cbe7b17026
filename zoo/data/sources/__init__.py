"""Sources of text, read by the class that the config of each kind names.

`base` says what such a class does.  The functions here take any source.
"""

from collections.abc import Iterator
from pathlib import Path

from zoo.blocks.making import make
from zoo.data.config import Source
from zoo.data.errors import DataError
from zoo.data.sources.base import Reader
from zoo.data.sources.pieces import Part, Piece, Texts

__all__ = [
    "Part",
    "Piece",
    "Texts",
    "cut_notes",
    "documents",
    "fingerprint",
    "notes",
    "pieces",
    "reader_of",
    "separator_notes",
    "total_bytes",
    "validation_cut",
]


def reader_of(source: Source) -> Reader:
    """What reads a source.  Raises DataError for a source that nothing reads as text."""
    if not source.reader:
        raise DataError(f"source {source.kind}: {type(source).__name__} must be a zoo.data.config.DocumentSource")
    return make(f"source {source.kind!r}", source.reader, source, is_a=Reader)


def pieces(source: Source, piece_bytes: int, fraction: float = 0.0) -> Iterator[Piece]:
    """Cut a source of text into pieces of about `piece_bytes`, in a fixed order.

    fraction: the share that is held out for validation.
    """
    return reader_of(source).pieces(piece_bytes, fraction)


def documents(source: Source, piece_bytes: int) -> Iterator[str]:
    """Yield every document of a source of text, whole."""
    for piece in pieces(source, piece_bytes):
        yield from piece.documents()


def total_bytes(source: Source) -> int | None:
    """Return the size of the source's text, None where only reading tells."""
    return reader_of(source).total_bytes()


def fingerprint(source: Source) -> list:
    """Return what names the content of a source, for the cache key: see `fingerprint` of each kind's reader."""
    return reader_of(source).fingerprint()


def notes(source: Source) -> list[str]:
    """Say what of a source is not read.  Raises DataError if files are missing or not readable."""
    return reader_of(source).notes()


def validation_cut(source: Source, fraction: float, cache: Path | None = None) -> tuple[Path, int] | None:
    """(file, byte) from which on the validation text is the end of a file; None where documents are held out by hash.

    cache: a folder that keeps what reading files whole has shown.
    """
    return reader_of(source).cut(fraction, cache)


def cut_notes(source: Source, fraction: float) -> list[str]:
    """Say so where the validation text is the end of a file."""
    cut = validation_cut(source, fraction)
    if cut is None:
        return []
    path, place = cut
    what = f"{path}: its text from byte {place:,} on is for validation"
    return [f"source {source.kind}: {what}, because so few files cannot be held out as wholes"]


def separator_notes(source: Source) -> list[str]:
    """Say in which files the separator of documents does not occur.  Raises DataError if it is in none."""
    return reader_of(source).separator_notes()
