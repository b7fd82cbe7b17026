"""Sources of text, cut into pieces that one process can read and tokenise on its own.

A piece is small to send, can be pickled, and yields its documents in parts, so that a document of any size is never in
memory whole.  Pieces of a source tile it in a fixed order, so piece number 7 is the same text today and after a crash.
Broken input raises DataError with the file and the place.
"""

import json
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import xxhash

from zoo.blocks.registry import load
from zoo.data.config import (
    DocumentSource,
    Files,
    HuggingFaceDataset,
    JsonLines,
    Parquet,
    PythonStdlib,
    Source,
    TextFiles,
)
from zoo.data.errors import DataError
from zoo.data.files import check_head, files_below, find_files, is_hidden, local_path, refuse_folder, survey
from zoo.data.parquet import groups_of, values
from zoo.data.reading import (
    begins_with_mark,
    blocks,
    decode,
    decoded,
    line_number,
    lines,
    not_utf8,
    occurs,
    ranges,
    separated,
    separator_pattern,
)
from zoo.data.text_files import content_bytes, cut_place, html_text, is_html, sliced, unreadable
from zoo.errors import ZooError
from zoo.files import make_folder, open_file, read_json, write_sealed_json

# What load_dataset takes for a reader of whatever lies in the working directory, and not for a dataset's name.
READERS = (
    *("arrow", "csv", "generator", "json", "pandas", "parquet", "spark", "sql", "text", "webdataset", "xml", "cache"),
    *("audiofolder", "hdf5", "imagefolder", "lance", "niftifolder", "pdffolder", "videofolder"),
)
STDLIB_TESTS = {"test", "tests", "idle_test"}
LINE_END = re.compile(rb"\n")
NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}
SHOWN_FILES = 3
MOST_SKIPPED = 20  # files that on_error: skip lists
FEW_FILES = 32  # up to so many, their hashes may put all of them on one side of training and validation
SIDES = 2  # part of the name of what is kept of them: raise it when the same files give another answer
SAMPLES, SAMPLE_BYTES = 4, 1 << 16


class Part(NamedTuple):
    """A part of a document's text.  `last`: the document ends here.  `where`: its place, for `Piece.place`."""

    text: str
    last: bool
    where: int


@dataclass(frozen=True)
class WholeFiles:
    """Files that are one document each; `strict` refuses what is not UTF-8, otherwise such a file is left out."""

    paths: tuple[Path, ...]
    strict: bool = True

    def parts(self) -> Iterator[Part]:
        """Yield the text of each file."""
        for i, path in enumerate(self.paths):
            if self.strict and is_html(path):
                yield Part(html_text(path), True, i)
            elif self.strict:
                yield from _last_marked(decoded(path, blocks(path)), i)
            else:
                try:
                    yield Part(path.read_bytes().decode(), True, i)
                except UnicodeDecodeError:
                    continue
                except OSError as error:
                    raise DataError(f"{path}: cannot be read: {error.strerror}") from error

    def place(self, where: int) -> str:
        """Where a part came from."""
        return str(self.paths[where])


@dataclass(frozen=True)
class FileSlice:
    """Bytes start..end (None: all) of one document; `held`: whether the slice is for validation."""

    path: Path
    start: int
    end: int | None
    held: bool

    def parts(self) -> Iterator[Part]:
        """Yield the text of the slice."""
        yield from _last_marked(decoded(self.path, sliced(self.path, self.start, self.end)), 0)

    def place(self, where: int) -> str:
        """Where a part came from."""
        return str(self.path)


@dataclass(frozen=True)
class TextRange:
    """Bytes start..end (None: all) of a file whose documents are set apart by `separator`."""

    path: Path
    separator: str
    start: int = 0
    end: int | None = None

    def parts(self) -> Iterator[Part]:
        """Yield the texts between separators."""
        held, begin = b"", self.start
        for at, data, last in separated(blocks(self.path, self.start, self.end), self.separator):
            text, held = decode(self.path, held + data, at - len(held), last=last)
            yield Part(text, last, begin)
            begin = at + len(data) if last else begin

    def place(self, where: int) -> str:
        """Where a part came from."""
        return f"{self.path}: line {line_number(self.path, where)}"


@dataclass(frozen=True)
class JsonRange:
    """Bytes start..end (None: all) of a file with a JSON object on each line."""

    path: Path
    field: str
    start: int = 0
    end: int | None = None

    def parts(self) -> Iterator[Part]:
        """Yield the field of each object; null is an empty document."""
        for offset, line in lines(self.path, self.start, self.end):
            if line.strip():
                yield Part(self._text(line, offset), True, offset)

    def place(self, where: int) -> str:
        """Where a part came from."""
        return f"{self.path}: line {line_number(self.path, where)}"

    def _text(self, line: bytes, offset: int) -> str:
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise not_utf8(self.path, offset + error.start, line[error.start :]) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.place(offset)}: not JSON: {error}") from error
        if not isinstance(value, dict) or self.field not in value:
            found = ", ".join(map(repr, value)) if isinstance(value, dict) else type(value).__name__
            raise DataError(f"{self.place(offset)}: needs an object with the key {self.field!r}; found {found}")
        return _checked_text(value[self.field], lambda: self.place(offset))


@dataclass(frozen=True)
class ParquetGroups:
    """Row groups of one Parquet file."""

    path: Path
    column: str
    groups: tuple[int, ...]

    def parts(self) -> Iterator[Part]:
        """Yield the column's values; null is an empty document."""
        for row, value in values(self.path, self.column, self.groups):
            yield Part(_checked_text(value, partial(self.place, row)), True, row)

    def place(self, where: int) -> str:
        """Where a part came from."""
        return f"{self.path}: row {where} (the first is 0)"


@dataclass(frozen=True)
class Texts:
    """Documents that the main process has read already; `first` is the number of the first one in its dataset."""

    texts: tuple[str, ...]
    first: int = 0
    dataset: str = ""

    def parts(self) -> Iterator[Part]:
        """Yield the documents."""
        yield from (Part(text, True, i) for i, text in enumerate(self.texts))

    def place(self, where: int) -> str:
        """Where a part came from."""
        return f"dataset {self.dataset}: document {self.first + where}"

    def written(self, path: Path) -> "WrittenTexts":
        """Write the documents to a file, and return the piece that reads them from there."""
        with path.open("w", encoding="ascii") as file:
            file.writelines(json.dumps(text) + "\n" for text in self.texts)
        return WrittenTexts(path, self.first, self.dataset)


@dataclass(frozen=True)
class WrittenTexts:
    """As `Texts`, with the documents in a file of ours, one JSON string a line."""

    path: Path
    first: int
    dataset: str

    def parts(self) -> Iterator[Part]:
        """Yield the documents."""
        with self.path.open(encoding="ascii") as file:
            yield from (Part(json.loads(line), True, i) for i, line in enumerate(file))

    def place(self, where: int) -> str:
        """Where a part came from."""
        return f"dataset {self.dataset}: document {self.first + where}"


Piece = WholeFiles | FileSlice | TextRange | JsonRange | ParquetGroups | Texts | WrittenTexts


def share_held_out(piece: Piece, fraction: float) -> float:
    """The share of a piece's documents that is held out: `fraction`, or all or nothing of a file cut in two."""
    return float(piece.held) if isinstance(piece, FileSlice) else fraction


def pieces(source: Source, piece_bytes: int, fraction: float = 0.0) -> Iterator[Piece]:
    """Cut a source of text into pieces of about `piece_bytes`, in a fixed order.

    fraction: the share that is held out for validation. Documents so few that their hashes would hold out all of them
    or none are held out as the end of the largest file.
    """
    match source:
        case PythonStdlib():
            yield from (WholeFiles(group, strict=False) for group in _grouped(stdlib_files(source), piece_bytes))
        case TextFiles(separator=None):
            files = text_files(source)
            if (cut := validation_cut(source, fraction)) is not None:
                path, place = cut
                files = [file for file in files if file != path]
                yield FileSlice(path, 0, place, held=False)
                yield FileSlice(path, place, None, held=True)
                yield from (FileSlice(file, 0, None, held=False) for file in files if not is_html(file))
                files = [file for file in files if is_html(file)]
            yield from (WholeFiles(group) for group in _grouped(files, piece_bytes))
        case TextFiles(separator=str(separator)):
            pattern, longest = separator_pattern(separator), 2 * len(separator.encode())
            for path in text_files(source):
                if is_html(path):
                    yield WholeFiles((path,))
                    continue
                yield from (TextRange(path, separator, a, b) for a, b in ranges(path, pattern, longest, piece_bytes))
        case JsonLines():
            for path in find_files(source):
                yield from (JsonRange(path, source.field, a, b) for a, b in ranges(path, LINE_END, 1, piece_bytes))
        case Parquet():
            for path in find_files(source):
                found = groups_of(path, source.column, piece_bytes)
                yield from (ParquetGroups(path, source.column, groups) for groups in found)
        case HuggingFaceDataset():
            numbered = enumerate(islice(_huggingface_texts(source), source.max_documents))
            yield from _read_pieces(numbered, f"dataset {source.path}", source.path, piece_bytes)
        case DocumentSource():
            texts_read = enumerate(load(source.module)(source).documents())
            yield from _read_pieces(texts_read, describe(source), describe(source), piece_bytes)
        case _:
            source_files(source)  # which refuses it


def text_files(source: TextFiles) -> list[Path]:
    """The files of a source of text, with `on_error: skip` only those that can be read."""
    files = find_files(source)
    return files if source.on_error == "fail" else [path for path in files if unreadable(path) is None]


def skipped(source: Source) -> list[str]:
    """`path: why` of each file that `on_error: skip` leaves out."""
    if not isinstance(source, TextFiles) or source.on_error == "fail":
        return []
    return [f"{path}: {why}" for path in find_files(source) if (why := unreadable(path)) is not None]


def validation_cut(source: Source, fraction: float, cache: Path | None = None) -> tuple[Path, int] | None:
    """(file, byte) from which on the validation text is the end of a file; None where documents are held out by hash.

    That is so for one file, and for a few whose hashes put all on one side.  cache: a folder that keeps what reading
    those few files whole has shown.
    """
    if not isinstance(source, TextFiles) or source.separator is not None or not 0 < fraction < 1:
        return None
    files = text_files(source)
    plain = [path for path in files if not is_html(path)]
    if not plain or len(files) > FEW_FILES or (len(files) > 1 and _on_both_sides(files, fraction, cache)):
        return None
    sizes = {path: content_bytes(path) for path in plain}
    largest = max(plain, key=lambda path: sizes[path])
    held = min(round(fraction * sum(sizes.values())), sizes[largest] // 2)
    return (largest, cut_place(largest, sizes[largest] - held)) if held else None


def _on_both_sides(files: list[Path], fraction: float, cache: Path | None) -> bool:
    """Whether the hashes of whole files hold some of them out, and not all; reads them, once for each of their states.

    A preparation asks several times, and every later training once: the answer lies in `cache` then, under the names,
    sizes, times and samples of the files.  What cannot be read or written there is found anew each time.
    """
    stats = [path.stat() for path in files]
    states = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats]
    if cache is None:
        return _read_on_both_sides(tuple(files), fraction, *states)
    known = [(path.name, *state[:2], _sampled(path, *state)) for path, state in zip(files, states, strict=True)]
    kept = cache / f"sides-{xxhash.xxh64(json.dumps([SIDES, known, fraction]).encode()).hexdigest()}.json"
    with suppress(ZooError):
        found = read_json(kept).get("both")
        if isinstance(found, bool):
            return found
    found = _read_on_both_sides(tuple(files), fraction, *states)
    with suppress(ZooError, OSError):
        make_folder(cache)
        write_sealed_json(kept, {"both": found})
    return found


@lru_cache
def _read_on_both_sides(files: tuple[Path, ...], fraction: float, *states: tuple[int, ...]) -> bool:
    sides = set()
    for path in files:
        hasher, size = xxhash.xxh64(), 0
        for part in WholeFiles((path,)).parts():
            hasher.update(part.text.encode())
            size += len(part.text)
        if size:  # an empty document is on no side
            sides.add(hasher.intdigest() < fraction * 2**64)
        if len(sides) == 2:
            return True
    return False


def documents(source: Source, piece_bytes: int) -> Iterator[str]:
    """Yield every document of a source of text, whole."""
    for piece in pieces(source, piece_bytes):
        yield from texts(piece)


def texts(piece: Piece) -> Iterator[str]:
    """Yield the documents of a piece, whole."""
    held = []
    for part in piece.parts():
        held.append(part.text)
        if part.last:
            yield "".join(held)
            held = []


def total_bytes(source: Source) -> int | None:
    """Return the size of the source's files, None where only reading tells."""
    if isinstance(source, HuggingFaceDataset | DocumentSource):
        return None
    return sum(path.stat().st_size for path in source_files(source))


def fingerprint(source: Source) -> list:
    """Return what names the content of a source, for the cache key.

    python-stdlib: names and content.  Local files: names, sizes, modification times and samples of their content, since
    programs that copy or unpack files set the time.  A dataset of the Hub: name, configuration, split and revision
    only, so that prepared rows can be used without a network.
    """
    if isinstance(source, PythonStdlib):
        return [(str(path), xxhash.xxh64(path.read_bytes()).hexdigest()) for path in stdlib_files(source)]
    if isinstance(source, DocumentSource):
        return list(load(source.module)(source).fingerprint())
    if isinstance(source, HuggingFaceDataset) and not local_path(source.path).is_dir():
        return []
    files = source_files(source)
    stats = [(path, path.stat()) for path in files]
    found: list = [
        (path.name, s.st_size, s.st_mtime_ns, _sampled(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
        for path, s in stats
    ]
    if isinstance(source, TextFiles):
        # Rows that an earlier version made of such files held the mark, and whole files with CRLF line ends.
        found += ["without its byte-order mark" for path in files if begins_with_mark(path)]
        found += ["as the text of HTML" for path in files if is_html(path)]
        found += ["CRLF separates too"] if "\n" in (source.separator or "") else []
    return found


@lru_cache(maxsize=1 << 16)
def _sampled(path: Path, size: int, *times: int) -> str:
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


def notes(source: Source) -> list[str]:
    """Say what of a source is not read: files that folders hold and the kind does not read, by reason.

    Raises DataError if files are missing or not readable.
    """
    if isinstance(source, DocumentSource):
        return []
    if not isinstance(source, Files):
        source_files(source)
        return []
    note = survey(source).note
    found = [f"source {source.kind}: {note}"] if note else []
    if left := skipped(source):
        found += [f"source {source.kind}: skipped {len(left):,} files that cannot be read (on_error: skip):"]
        found += [f"  {line}" for line in left[:MOST_SKIPPED]]
        found += [f"  and {len(left) - MOST_SKIPPED:,} more"] if len(left) > MOST_SKIPPED else []
    return found


def cut_notes(source: Source, fraction: float) -> list[str]:
    """Say so where the validation text is the end of a file."""
    cut = validation_cut(source, fraction)
    if cut is None:
        return []
    path, place = cut
    what = f"{path}: its text from byte {place:,} on is for validation"
    return [f"source {source.kind}: {what}, because so few files cannot be held out as wholes"]


def separator_notes(source: Source) -> list[str]:
    """Say in which files the separator does not occur; each of them is one document.

    Raises DataError if it is in none.  Reads every file up to its first separator.
    """
    if not isinstance(source, TextFiles) or source.separator is None:
        return []
    files = [path for path in text_files(source) if not is_html(path)]
    without = [path for path in files if not occurs(path, source.separator)]
    if not without:
        return []
    place = f"source text: separator {source.separator!r}"
    if files and len(without) == len(files):
        escaped = "\\" in source.separator
        hint = (
            "in YAML an escape such as \\n needs double quotes" if escaped else "leave it out to read each file whole"
        )
        raise DataError(f"{place}: occurs in none of {len(files):,} files ({_some(files)}); {hint}")
    return [f"{place}: not in {len(without):,} of {len(files):,} files, each one document: {_some(without)}"]


def _some(paths: list[Path]) -> str:
    more = f", and {len(paths) - SHOWN_FILES:,} more" if len(paths) > SHOWN_FILES else ""
    return ", ".join(map(str, paths[:SHOWN_FILES])) + more


def source_files(source: Source) -> list[Path]:
    """Return the local files a source reads."""
    if isinstance(source, PythonStdlib):
        return stdlib_files(source)
    if isinstance(source, HuggingFaceDataset):
        return files_below(local_path(source.path))
    if not isinstance(source, Files):
        raise DataError(f"source {source.kind}: {type(source).__name__} must be a zoo.data.config.DocumentSource")
    return find_files(source)


def stdlib_files(source: PythonStdlib) -> list[Path]:
    """Return the standard library's *.py files, sorted, without site-packages and (unless asked for) test suites."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = NOT_STDLIB if source.tests else NOT_STDLIB | STDLIB_TESTS
    found = []
    for folder, inner, names in os.walk(root, onerror=refuse_folder):
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


def _last_marked(texts: Iterator[str], where: int) -> Iterator[Part]:
    """Parts of one document."""
    before = next(texts)
    for text in texts:
        yield Part(before, False, where)
        before = text
    yield Part(before, True, where)


def _checked_text(value: object, place: Callable[[], str]) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place()}: the text must be a string; found {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place()}: character {error.start} is half a surrogate pair, which is not text"
            ) from error
    return value


def _read_pieces(numbered: Iterator[tuple[int, object]], place: str, dataset: str, piece_bytes: int) -> Iterator[Texts]:
    """Pieces of documents that this process reads.  numbered: (number, document)."""
    texts, size, first = [], 0, 0
    for i, text in numbered:
        texts.append(_checked_text(text, partial(_document, place, i)))
        size += len(texts[-1])
        if size >= piece_bytes:
            yield Texts(tuple(texts), first, dataset)
            texts, size, first = [], 0, i + 1
    if texts:
        yield Texts(tuple(texts), first, dataset)


def _document(place: str, number: int) -> str:
    return f"{place}: document {number}"


def describe(source: DocumentSource) -> str:
    """A source of another package in a few words."""
    return " ".join(filter(None, (f"source {source.kind}", source.describe())))


def _huggingface_texts(source: HuggingFaceDataset) -> Iterator[object]:
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path = local_path(source.path).absolute()
    if not path.is_dir() and source.path in READERS:
        raise DataError(
            f"dataset {source.path!r}: the name of a reader of the datasets library, which would read the working "
            "directory (pandas: pickles, which run code); name a dataset, or a folder of data files"
        )
    for file in files_below(path):
        if not is_hidden(file.relative_to(path)):
            check_head(file)
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
        for batch in dataset.iter(batch_size=64):  # documents may be long
            if source.field not in batch:
                found = ", ".join(map(repr, batch))
                raise DataError(f"dataset {source.path!r}: no column {source.field!r}; it has {found}")
            yield from batch[source.field]
    except DataError:
        raise
    except Exception as error:  # as above, in the middle of the data
        raise DataError(f"dataset {source.path!r}: reading failed: {type(error).__name__}: {error}") from error
