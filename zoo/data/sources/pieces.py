"""Pieces of a source, that one process can read and tokenise on its own, and what several kinds of source make them of.

A piece is small to send, can be pickled, and yields its documents in parts, so that a document of any size is never in
memory whole.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from zoo.data.errors import DataError


class Part(NamedTuple):
    """A part of a document's text.  `last`: the document ends here.  `where`: its place, for `Piece.place`."""

    text: str
    last: bool
    where: int


class Piece:
    """Documents that one process reads; a kind of source has a subclass of its own, or makes `Texts`."""

    def parts(self) -> Iterator[Part]:
        """Yield the text of the documents, in order."""
        raise NotImplementedError

    def place(self, where: int) -> str:
        """Where a part came from, for messages."""
        raise NotImplementedError

    def share_held_out(self, fraction: float) -> float:
        """The share of its documents that is held out, of a source that holds out `fraction`."""
        return fraction

    def documents(self) -> Iterator[str]:
        """Yield the documents, whole."""
        held = []
        for part in self.parts():
            held.append(part.text)
            if part.last:
                yield "".join(held)
                held = []


@dataclass(frozen=True)
class Texts(Piece):
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
class WrittenTexts(Piece):
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


def read_pieces(numbered: Iterator[tuple[int, object]], place: str, dataset: str, piece_bytes: int) -> Iterator[Texts]:
    """Pieces of documents that this process reads.

    numbered: (number, document).  place, dataset: what messages call the source.
    """
    texts, size, first = [], 0, 0
    for i, text in numbered:
        texts.append(checked_text(text, partial(_document, place, i)))
        size += len(texts[-1])
        if size >= piece_bytes:
            yield Texts(tuple(texts), first, dataset)
            texts, size, first = [], 0, i + 1
    if texts:
        yield Texts(tuple(texts), first, dataset)


def _document(place: str, number: int) -> str:
    return f"{place}: document {number}"


def last_marked(texts: Iterator[str], where: int) -> Iterator[Part]:
    """The parts of one document, which `texts` are together, at the place `where`."""
    before = next(texts)
    for text in texts:
        yield Part(before, False, where)
        before = text
    yield Part(before, True, where)


def checked_text(value: object, place: Callable[[], str]) -> str:
    """A document's text; null is an empty document.

    place: says where it is.  Raises DataError for what is not text.
    """
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
