"""Files that are one document each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.data.errors import DataError
from zoo.data.reading import blocks, decoded
from zoo.data.sources.pieces import Part, Piece, last_marked
from zoo.data.text_files import html_text, is_html


@dataclass(frozen=True)
class WholeFiles(Piece):
    """Files that are one document each; `strict` refuses what is not UTF-8, otherwise such a file is left out."""

    paths: tuple[Path, ...]
    strict: bool = True

    def parts(self) -> Iterator[Part]:
        """Yield the text of each file."""
        for i, path in enumerate(self.paths):
            if self.strict and is_html(path):
                yield Part(html_text(path), True, i)
            elif self.strict:
                yield from last_marked(decoded(path, blocks(path)), i)
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


def grouped(paths: Iterable[Path], piece_bytes: int) -> Iterator[tuple[Path, ...]]:
    """Yield the files in groups of about `piece_bytes`, in order."""
    group, size = [], 0
    for path in paths:
        group.append(path)
        size += path.stat().st_size
        if size >= piece_bytes:
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)
