"""The source `text`: files of text, one document each or several with a separator."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.data.config import TextFiles
from zoo.data.errors import DataError
from zoo.data.reading import (
    begins_with_mark,
    blocks,
    decode,
    decoded,
    line_number,
    occurs,
    ranges,
    separated,
    separator_pattern,
)
from zoo.data.sources.held_out import place_of_cut
from zoo.data.sources.local_files import FilesReader
from zoo.data.sources.pieces import Part, Piece, last_marked
from zoo.data.sources.whole_files import WholeFiles, grouped
from zoo.data.text_files import is_html, sliced, unreadable

SHOWN_FILES = 3
MOST_SKIPPED = 20  # files that on_error: skip lists


@dataclass(frozen=True)
class FileSlice(Piece):
    """Bytes start..end (None: all) of one document; `held`: whether the slice is for validation."""

    path: Path
    start: int
    end: int | None
    held: bool

    def parts(self) -> Iterator[Part]:
        """Yield the text of the slice."""
        yield from last_marked(decoded(self.path, sliced(self.path, self.start, self.end)), 0)

    def place(self, where: int) -> str:
        """Where a part came from."""
        return str(self.path)

    def share_held_out(self, fraction: float) -> float:
        """All or nothing."""
        return float(self.held)


@dataclass(frozen=True)
class TextRange(Piece):
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


class TextReader(FilesReader[TextFiles]):
    """Text files.

    Documents so few that their hashes would hold out all of them or none are held out as the end of the largest file.
    """

    def pieces(self, piece_bytes: int, fraction: float) -> Iterator[Piece]:
        separator = self.source.separator
        if separator is None:
            yield from self._whole(piece_bytes, fraction)
            return
        pattern, longest = separator_pattern(separator), 2 * len(separator.encode())
        for path in self.readable():
            if is_html(path):
                yield WholeFiles((path,))
                continue
            yield from (TextRange(path, separator, a, b) for a, b in ranges(path, pattern, longest, piece_bytes))

    def _whole(self, piece_bytes: int, fraction: float) -> Iterator[Piece]:
        """Pieces of files that are one document each."""
        files = self.readable()
        if (cut := self.cut(fraction)) is not None:
            path, place = cut
            files = [file for file in files if file != path]
            yield FileSlice(path, 0, place, held=False)
            yield FileSlice(path, place, None, held=True)
            yield from (FileSlice(file, 0, None, held=False) for file in files if not is_html(file))
            files = [file for file in files if is_html(file)]
        yield from (WholeFiles(group) for group in grouped(files, piece_bytes))

    def fingerprint(self) -> list:
        """As of all files, with what an earlier version read otherwise.

        Its rows held the byte-order mark, HTML with its tags, and whole files with CRLF line ends.
        """
        found, files = super().fingerprint(), self.files()
        found += ["without its byte-order mark" for path in files if self._has_mark(path)]
        found += ["as the text of HTML" for path in files if is_html(path)]
        return found + (["CRLF separates too"] if "\n" in (self.source.separator or "") else [])

    def _has_mark(self, path: Path) -> bool:
        """Whether a file begins with a byte-order mark; False for one that `on_error: skip` leaves out."""
        try:
            return begins_with_mark(path)
        except DataError:
            if self.source.on_error == "fail":
                raise
            return False

    def notes(self) -> list[str]:
        found = super().notes()
        if left := self.skipped():
            found += [f"source {self.source.kind}: skipped {len(left):,} files that cannot be read (on_error: skip):"]
            found += [f"  {line}" for line in left[:MOST_SKIPPED]]
            found += [f"  and {len(left) - MOST_SKIPPED:,} more"] if len(left) > MOST_SKIPPED else []
        return found

    def readable(self) -> list[Path]:
        """The files, with `on_error: skip` only those that can be read."""
        files = self.files()
        return files if self.source.on_error == "fail" else [path for path in files if unreadable(path) is None]

    def skipped(self) -> list[str]:
        """`path: why` of each file that `on_error: skip` leaves out."""
        if self.source.on_error == "fail":
            return []
        return [f"{path}: {why}" for path in self.files() if (why := unreadable(path)) is not None]

    def cut(self, fraction: float, cache: Path | None = None) -> tuple[Path, int] | None:
        if self.source.separator is not None or not 0 < fraction < 1:
            return None
        return place_of_cut(self.readable(), fraction, cache)

    def separator_notes(self) -> list[str]:
        """In which files the separator does not occur, each of which is one document.  DataError if it is in none."""
        separator = self.source.separator
        if separator is None:
            return []
        files = [path for path in self.readable() if not is_html(path)]
        without = [path for path in files if not occurs(path, separator)]
        if not without:
            return []
        place = f"source text: separator {separator!r}"
        if files and len(without) == len(files):
            escape = "in YAML an escape such as \\n needs double quotes"
            hint = escape if "\\" in separator else "leave it out to read each file whole"
            raise DataError(f"{place}: occurs in none of {len(files):,} files ({_some(files)}); {hint}")
        return [f"{place}: not in {len(without):,} of {len(files):,} files, each one document: {_some(without)}"]


def _some(paths: list[Path]) -> str:
    more = f", and {len(paths) - SHOWN_FILES:,} more" if len(paths) > SHOWN_FILES else ""
    return ", ".join(map(str, paths[:SHOWN_FILES])) + more
