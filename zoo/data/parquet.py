"""Parquet files as a source of text: row groups, and the values of one column read in small batches."""

from collections.abc import Iterator
from pathlib import Path

from zoo.data.errors import DataError
from zoo.files import check_file

BATCH_BYTES = 1 << 22
MOST_VALUE_BYTES = 1 << 25  # of one value, which is read whole


def groups_of(path: Path, column: str, piece_bytes: int) -> Iterator[tuple[int, ...]]:
    """Yield the row groups of a file, together about `piece_bytes` each."""
    with _opened(path, column) as file:
        sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
    group, size = [], 0
    for i, more in enumerate(sizes):
        group.append(i)
        size += more
        if size >= piece_bytes:
            yield tuple(group)
            group, size = [], 0
    if group:
        yield tuple(group)


def values(path: Path, column: str, groups: tuple[int, ...]) -> Iterator[tuple[int, object]]:
    """Yield (row of the file, value) of a column; text is `str`, a missing value is None.

    Raises DataError with file and row for a value that is not UTF-8, or of more than MOST_VALUE_BYTES.
    """
    import pyarrow

    with _opened(path, column) as file:
        for group in groups:
            row = sum(file.metadata.row_group(i).num_rows for i in range(group))
            about = file.metadata.row_group(group)
            rows = max(1, min(1024, about.num_rows * BATCH_BYTES // max(1, about.total_byte_size)))
            try:
                for batch in file.iter_batches(rows, row_groups=[group], columns=[column]):
                    yield from _of_batch(path, batch.column(0), row)
                    row += len(batch)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{path}: row group {group}, about row {row}: cannot be read: {error}") from error


def _of_batch(path: Path, column, row: int) -> Iterator[tuple[int, object]]:
    for i, value in enumerate(column):
        try:
            found = value.as_py()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: row {row + i} (the first is 0): byte {error.start} of the text is not UTF-8 "
                f"(0x{error.object[error.start : error.start + 1].hex()}); convert the column, or leave the file out"
            ) from error
        if isinstance(found, str) and len(found) > MOST_VALUE_BYTES:
            raise DataError(
                f"{path}: row {row + i} (the first is 0): a text of more than {MOST_VALUE_BYTES >> 20} MiB, "
                "and a value is read whole; cut it into several rows"
            )
        yield row + i, found


def _opened(path: Path, column: str):
    import pyarrow
    import pyarrow.parquet

    check_file(path, DataError)
    try:
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error
    if column not in file.schema_arrow.names:
        raise DataError(f"{path}: no column {column!r}; it has {', '.join(map(repr, file.schema_arrow.names))}")
    return file
