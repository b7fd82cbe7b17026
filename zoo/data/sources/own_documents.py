"""A source of another package, which yields its documents one after the other."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from zoo.blocks.registry import load
from zoo.data.config import DocumentSource
from zoo.data.sources.base import Reader
from zoo.data.sources.pieces import Piece, read_pieces


class OwnDocumentsReader(Reader[DocumentSource]):
    """Reads by the class that the source's `module` names."""

    @cached_property
    def own(self) -> Any:
        """What the other package reads with, made at first use."""
        return load(self.source.module)(self.source)

    def files(self) -> list[Path]:
        return []

    def pieces(self, piece_bytes: int, fraction: float) -> Iterator[Piece]:
        name = " ".join(filter(None, (f"source {self.source.kind}", self.source.describe())))
        yield from read_pieces(enumerate(self.own.documents()), name, name, piece_bytes)

    def total_bytes(self) -> None:
        return None

    def fingerprint(self) -> list:
        return list(self.own.fingerprint())
