"""A source of another package, which yields its documents one after the other."""

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from zoo.blocks.making import make, type_name
from zoo.data.config import DocumentSource
from zoo.data.errors import DataError
from zoo.data.sources.base import Reader
from zoo.data.sources.pieces import Piece, read_pieces


class OwnDocumentsReader(Reader[DocumentSource]):
    """Reads by the class that the source's `module` names."""

    @cached_property
    def own(self) -> Any:
        """What the other package reads with, made at first use."""
        what = f"source {self.source.kind!r}"
        return make(what, self.source.module, self.source, needs=("documents", "fingerprint"))

    def files(self) -> list[Path]:
        return []

    def pieces(self, piece_bytes: int, fraction: float) -> Iterator[Piece]:
        name = " ".join(filter(None, (f"source {self.source.kind}", self.source.describe())))
        documents = self.own.documents()
        if not isinstance(documents, Iterable):
            raise DataError(f"{name}: documents must give texts, one after the other; found {type_name(documents)}")
        yield from read_pieces(enumerate(documents), name, name, piece_bytes)

    def total_bytes(self) -> None:
        return None

    def fingerprint(self) -> list:
        found = self.own.fingerprint()
        try:
            json.dumps(found)
        except (TypeError, ValueError):
            found = None
        if not isinstance(found, list | tuple):
            must = "fingerprint must be a list of text, numbers and lists of them"
            raise DataError(f"source {self.source.kind}: {must}, which changes when the documents do")
        return list(found)
