"""Sources of text, cut into pieces that one process can read and tokenise on its own.

A piece is small, can be pickled, and yields whole documents as `str`.  Pieces of a source tile it in a fixed order, so
piece number 7 is the same text today and after a crash.  Broken input raises DataError with the file and the place.
"""

import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import xxhash

from zoo.data.config import HuggingFaceDataset, JsonLines, Parquet, PythonStdlib, Source, TextFiles
from zoo.data.errors import DataError
from zoo.data.files import find_files, lines, local_path, not_utf8, ranges, read_all, read_range

STDLIB_TESTS = {"test", "tests", "idle_test"}
NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class WholeFiles:
    """Files that are one document each; `strict` refuses what is not UTF-8, otherwise such a file is left out."""

    paths: tuple[Path, ...]
    strict: bool = True

    def documents(self) -> Iterator[str]:
        """Yield the text of each file."""
        for path in self.paths:
            data = read_all(path)
            try:
                yield data.decode()
            except UnicodeDecodeError as error:
                if self.strict:
                    raise not_utf8(path, error.start, data[error.start :]) from error


@dataclass(frozen=True)
class TextRange:
    """Bytes start..end (None: all) of a file whose documents are set apart by `separator`."""

    path: Path
    separator: bytes
    start: int = 0
    end: int | None = None

    def documents(self) -> Iterator[str]:
        """Yield the texts between separators."""
        offset, data = self.start, read_range(self.path, self.start, self.end)
        for text in data.split(self.separator):
            try:
                yield text.decode()
            except UnicodeDecodeError as error:
                raise not_utf8(self.path, offset + error.start, text[error.start :]) from error
            offset += len(text) + len(self.separator)


@dataclass(frozen=True)
class JsonRange:
    """Bytes start..end (None: all) of a file with a JSON object on each line."""

    path: Path
    field: str
    start: int = 0
    end: int | None = None

    def documents(self) -> Iterator[str]:
        """Yield the field of each object; null is an empty document."""
        offset = self.start
        for line in lines(self.path, self.start, self.end):
            if line.strip():
                yield self._text(line, offset)
            offset += len(line)

    def _text(self, line: bytes, offset: int) -> str:
        place = f"{self.path}: line at byte {offset}"
        try:
            value = json.loads(line)
        except UnicodeDecodeError as error:
            raise not_utf8(self.path, offset + error.start, line[error.start :]) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON: {error}") from error
        if not isinstance(value, dict) or self.field not in value:
            found = ", ".join(map(repr, value)) if isinstance(value, dict) else type(value).__name__
            raise DataError(f"{place}: needs an object with the key {self.field!r}; found {found}")
        return _checked_text(value[self.field], place)


@dataclass(frozen=True)
class ParquetGroups:
    """Row groups of one Parquet file."""

    path: Path
    column: str
    groups: tuple[int, ...]

    def documents(self) -> Iterator[str]:
        """Yield the column's values; null is an empty document."""
        for group in self.groups:
            for row, text in enumerate(_parquet_column(self.path, self.column, group)):
                yield _checked_text(text, f"{self.path}: row {row} of row group {group}")


@dataclass(frozen=True)
class Texts:
    """Documents that the main process has read already."""

    texts: tuple[str, ...]

    def documents(self) -> Iterator[str]:
        """Yield the documents."""
        return iter(self.texts)


Piece = WholeFiles | TextRange | JsonRange | ParquetGroups | Texts


def pieces(source: Source, piece_bytes: int) -> Iterator[Piece]:
    """Cut a source of text into pieces of about `piece_bytes`, in a fixed order."""
    match source:
        case PythonStdlib():
            yield from (WholeFiles(group, strict=False) for group in _grouped(stdlib_files(source), piece_bytes))
        case TextFiles(separator=None):
            yield from (WholeFiles(group) for group in _grouped(find_files(source), piece_bytes))
        case TextFiles():
            separator = source.separator.encode()
            for path in find_files(source):
                yield from (TextRange(path, separator, a, b) for a, b in ranges(path, separator, piece_bytes))
        case JsonLines():
            for path in find_files(source):
                yield from (JsonRange(path, source.field, a, b) for a, b in ranges(path, b"\n", piece_bytes))
        case Parquet():
            for path in find_files(source):
                yield from _parquet_pieces(path, source.column, piece_bytes)
        case HuggingFaceDataset():
            yield from _huggingface_pieces(source, piece_bytes)


def documents(source: Source, piece_bytes: int) -> Iterator[str]:
    """Yield every document of a source of text."""
    for piece in pieces(source, piece_bytes):
        yield from piece.documents()


def total_bytes(source: Source) -> int | None:
    """Return the size of the source's files, None where only reading tells."""
    if isinstance(source, HuggingFaceDataset):
        return None
    return sum(path.stat().st_size for path in source_files(source))


def fingerprint(source: Source) -> list:
    """Return what names the content of a source, for the cache key.

    python-stdlib: names and content.  Local files: names, sizes and modification times.  A dataset of the Hub: name,
    configuration, split and revision only, so that prepared rows can be used without a network.
    """
    if isinstance(source, PythonStdlib):
        return [(str(path), xxhash.xxh64(path.read_bytes()).hexdigest()) for path in stdlib_files(source)]
    if isinstance(source, HuggingFaceDataset) and not local_path(source.path).is_dir():
        return []
    stats = [(path.name, path.stat()) for path in source_files(source)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def source_files(source: Source) -> list[Path]:
    """Return the local files a source reads."""
    if isinstance(source, PythonStdlib):
        return stdlib_files(source)
    if isinstance(source, HuggingFaceDataset):
        return sorted(p for p in local_path(source.path).rglob("*") if p.is_file())
    return find_files(source)


def stdlib_files(source: PythonStdlib) -> list[Path]:
    """Return the standard library's *.py files, sorted, without site-packages and (unless asked for) test suites."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = NOT_STDLIB if source.tests else NOT_STDLIB | STDLIB_TESTS
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in left_out]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    found = sorted(path for path in found if path.is_file())
    if not found:
        raise DataError(f"python-stdlib: no *.py files in {root}; this Python has no source files of its library")
    return found


def _grouped(paths: Iterable[Path], piece_bytes: int) -> Iterator[tuple[Path, ...]]:
    group, size = [], 0
    for path in paths:
        group.append(path)
        size += path.stat().st_size
        if size >= piece_bytes:
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)


def _checked_text(value: object, place: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place}: the text must be a string; found {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{place}: character {error.start} is half a surrogate pair, which is not text") from error
    return value


def _parquet(path: Path, column: str):
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error
    if column not in file.schema_arrow.names:
        raise DataError(f"{path}: no column {column!r}; it has {', '.join(map(repr, file.schema_arrow.names))}")
    return file


def _parquet_column(path: Path, column: str, group: int) -> list:
    import pyarrow

    with _parquet(path, column) as file:
        try:
            return file.read_row_group(group, columns=[column]).column(0).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: row group {group} cannot be read: {error}") from error


def _parquet_pieces(path: Path, column: str, piece_bytes: int) -> Iterator[ParquetGroups]:
    with _parquet(path, column) as file:
        sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
    group, size = [], 0
    for i, more in enumerate(sizes):
        group.append(i)
        size += more
        if size >= piece_bytes:
            yield ParquetGroups(path, column, tuple(group))
            group, size = [], 0
    if group:
        yield ParquetGroups(path, column, tuple(group))


def _huggingface_pieces(source: HuggingFaceDataset, piece_bytes: int) -> Iterator[Texts]:
    texts, size = [], 0
    for i, text in enumerate(islice(_huggingface_texts(source), source.max_documents)):
        texts.append(_checked_text(text, f"dataset {source.path}: document {i}"))
        size += len(texts[-1])
        if size >= piece_bytes:
            yield Texts(tuple(texts))
            texts, size = [], 0
    if texts:
        yield Texts(tuple(texts))


def _huggingface_texts(source: HuggingFaceDataset) -> Iterator[object]:
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path = local_path(source.path)
    try:
        dataset = datasets.load_dataset(
            str(path) if path.is_dir() else source.path,
            source.config_name,
            split=source.split,
            revision=source.revision,
            streaming=source.streaming,
        )
    except (
        Exception
    ) as error:  # the library's errors have no common base: network, gate, bad name, bad split, bad files
        raise DataError(f"dataset {source.path!r} cannot be loaded: {type(error).__name__}: {error}") from error
    names = dataset.column_names
    if names is not None and source.field not in names:
        raise DataError(f"dataset {source.path!r}: no column {source.field!r}; it has {', '.join(map(repr, names))}")
    try:
        for batch in dataset.iter(batch_size=1000):
            if source.field not in batch:
                found = ", ".join(map(repr, batch))
                raise DataError(f"dataset {source.path!r}: no column {source.field!r}; it has {found}")
            yield from batch[source.field]
    except DataError:
        raise
    except Exception as error:  # as above, in the middle of the data
        raise DataError(f"dataset {source.path!r}: reading failed: {type(error).__name__}: {error}") from error
