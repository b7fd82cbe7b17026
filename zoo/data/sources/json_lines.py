"""The source `jsonl`: a JSON object on each line."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.data.config import JsonLines
from zoo.data.errors import DataError
from zoo.data.reading import line_number, lines, not_utf8, ranges
from zoo.data.sources.local_files import FilesReader
from zoo.data.sources.pieces import Part, Piece, checked_text

LINE_END = re.compile(rb"\n")


@dataclass(frozen=True)
class JsonRange(Piece):
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
        return checked_text(value[self.field], lambda: self.place(offset))


class JsonLinesReader(FilesReader[JsonLines]):
    """Files of JSON lines, cut where a line ends."""

    def pieces(self, piece_bytes: int, fraction: float) -> Iterator[Piece]:
        for path in self.files():
            yield from (JsonRange(path, self.source.field, a, b) for a, b in ranges(path, LINE_END, 1, piece_bytes))
