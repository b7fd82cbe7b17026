"""The source `parquet`: a column of Parquet files, one document a row."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zoo.data.config import Parquet
from zoo.data.parquet import groups_of, values
from zoo.data.sources.local_files import FilesReader
from zoo.data.sources.pieces import Part, Piece, checked_text


@dataclass(frozen=True)
class ParquetGroups(Piece):
    """Row groups of one Parquet file."""

    path: Path
    column: str
    groups: tuple[int, ...]

    def parts(self) -> Iterator[Part]:
        """Yield the column's values; null is an empty document."""
        for row, value in values(self.path, self.column, self.groups):
            yield Part(checked_text(value, partial(self.place, row)), True, row)

    def place(self, where: int) -> str:
        """Where a part came from."""
        return f"{self.path}: row {where} (the first is 0)"


class ParquetReader(FilesReader[Parquet]):
    """Parquet files, cut where a row group ends."""

    def total_bytes(self) -> None:  # columns are compressed, and most of them are not read
        return None

    def pieces(self, piece_bytes: int, fraction: float) -> Iterator[Piece]:
        for path in self.files():
            found = groups_of(path, self.source.column, piece_bytes)
            yield from (ParquetGroups(path, self.source.column, groups) for groups in found)
