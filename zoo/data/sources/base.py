"""What reads a source: the class that a config names, and what is the same for every kind of local files."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

import xxhash

from zoo.data.config import Source
from zoo.data.errors import DataError
from zoo.data.files import COMPRESSED
from zoo.data.sources.pieces import Piece
from zoo.files import open_file

SAMPLES, SAMPLE_BYTES = 4, 1 << 16

Config = TypeVar("Config", bound=Source)


class Reader(Generic[Config]):
    """Reads one source.  A kind defines `files` and `pieces`; what is read without files defines `fingerprint` too.

    Pieces of a source tile it in a fixed order, so piece number 7 is the same text today and after a crash.  Broken
    input raises DataError with the file and the place.
    """

    def __init__(self, source: Config):
        self.source = source

    def files(self) -> list[Path]:
        """The local files that it reads; [] for what has none."""
        raise DataError(f"source {self.source.kind}: {type(self).__name__} must define files")

    def pieces(self, piece_bytes: int, fraction: float) -> Iterator[Piece]:
        """Cut the source into pieces of about `piece_bytes`; fraction: the share that is held out for validation."""
        raise DataError(f"source {self.source.kind}: {type(self).__name__} must define pieces")

    def total_bytes(self) -> int | None:
        """The size of the text, None where only reading tells, as of compressed files."""
        files = list(self.files())
        if any(path.suffix in COMPRESSED for path in files):
            return None
        return sum(path.stat().st_size for path in files)

    def fingerprint(self) -> list:
        """What names the content, for the cache key: names, sizes, times and samples of the files.

        Samples too, because programs that copy or unpack files set the time.
        """
        found = []
        for path in self.files():
            s = path.stat()
            found.append((path.name, s.st_size, s.st_mtime_ns, sampled(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns)))
        return found

    def notes(self) -> list[str]:
        """What of the source is not read.  Raises DataError if files are missing or not readable."""
        self.files()
        return []

    def cut(self, fraction: float, cache: Path | None = None) -> tuple[Path, int] | None:
        """(file, byte) from which on the validation text is the end of a file, if it is.

        cache: a folder that keeps what reading files whole has shown.
        """
        return None

    def separator_notes(self) -> list[str]:
        """In which files a separator of documents does not occur; reads every file up to its first separator."""
        return []


@lru_cache(maxsize=1 << 16)
def sampled(path: Path, size: int, *times: int) -> str:
    """The hash of a file's content, of more than 256 KiB that of samples; `times` tell that it was changed since."""
    hasher = xxhash.xxh64()
    with open_file(path, DataError) as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            hasher.update(file.read(SAMPLES * SAMPLE_BYTES))
        else:
            for i in range(SAMPLES):  # both ends among them
                file.seek((size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                hasher.update(file.read(SAMPLE_BYTES))
    return hasher.hexdigest()
