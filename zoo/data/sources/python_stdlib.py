"""The source `python-stdlib`: the *.py files of Python's own library."""

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import xxhash

from zoo.data.config import PythonStdlib
from zoo.data.errors import DataError
from zoo.data.files import refuse_folder
from zoo.data.sources.base import Reader
from zoo.data.sources.pieces import Piece
from zoo.data.sources.whole_files import WholeFiles, grouped

TESTS = {"test", "tests", "idle_test"}
NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}


class StdlibReader(Reader[PythonStdlib]):
    """Every file is one document; those that are not UTF-8, such as tests of encodings, are left out."""

    def files(self) -> list[Path]:
        """The library's *.py files, sorted, without site-packages and (unless asked for) test suites."""
        root = Path(sysconfig.get_paths()["stdlib"])
        left_out = NOT_STDLIB if self.source.tests else NOT_STDLIB | TESTS
        found = []
        for folder, inner, names in os.walk(root, onerror=refuse_folder):
            inner[:] = [name for name in inner if name not in left_out]
            found += [Path(folder, name) for name in names if name.endswith(".py")]
        found = sorted(path for path in found if path.is_file())
        if not found:
            raise DataError(f"python-stdlib: no *.py files in {root}; this Python has no source files of its library")
        return found

    def pieces(self, piece_bytes: int, fraction: float) -> Iterator[Piece]:
        yield from (WholeFiles(group, strict=False) for group in grouped(self.files(), piece_bytes))

    def fingerprint(self) -> list:
        """Names and content: every environment has files of its own, with times of their own."""
        return [(str(path), xxhash.xxh64(path.read_bytes()).hexdigest()) for path in self.files()]
