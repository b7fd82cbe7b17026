"""How many rows of ready shards are shorter than `seq_len`, so that padding fills them.  Imports no torch.

The sizes of rows stand in their shards, so that none is decoded but one of each size.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np

from zoo.data.config import Mds
from zoo.data.errors import DataError
from zoo.data.mds import rows_of, token_numbers
from zoo.data.prepared import RowStream
from zoo.data.shards import read_index


def short_rows_note(stream: RowStream, seq_len: int) -> str | None:
    """A sentence on the short rows of a source of ready shards; None if there are none.

    Of remote shards, which are fetched row by row, nothing is known.  The shards must have been made ready.
    """
    if not isinstance(stream.source, Mds) or stream.remote:
        return None
    rows = short = padding = 0
    for lengths in row_lengths(stream):
        few = lengths[lengths < seq_len]
        rows, short = rows + len(lengths), short + len(few)
        inputs = few if stream.source.labels_column else np.maximum(few - 1, 0)  # the last token is a target only
        padding += int((seq_len - inputs).sum())
    if not short:
        return None
    share = f"{padding:,} of {rows * seq_len:,} places are padding, which is not trained on"
    return f"source mds: {stream.folder}: {short:,} of {rows:,} rows have fewer than {seq_len:,} tokens: {share}"


def row_lengths(stream: RowStream) -> Iterator[np.ndarray]:
    """The tokens of each row, [rows], shard by shard.  Raises DataError for a shard that contradicts its index."""
    source = cast(Mds, stream.source)
    known: dict[tuple[str, int], int] = {}
    for shard in read_index(stream.folder):
        column = shard["column_names"].index(source.tokens_column)
        kind = shard["column_encodings"][column]
        sizes, first, places = np.unique(_sizes(stream.folder, shard, column), return_index=True, return_inverse=True)
        new = [(int(at), int(size)) for at, size in zip(first, sizes, strict=True) if (kind, int(size)) not in known]
        decoded = rows_of(stream.folder, shard, [at for at, _ in new])
        for (_, size), row in zip(new, decoded, strict=True):
            known[kind, size] = len(token_numbers(source, row[source.tokens_column]))
        yield np.array([known[kind, int(size)] for size in sizes], np.int64)[places.ravel()]


def _sizes(folder: Path, shard: dict, column: int) -> np.ndarray:
    """Bytes of a column in each row, [rows].

    A shard is the number of rows, the place of each row and of the end, and the rows.  A row begins with the size of
    each column whose size the index does not state.  All are uint32.
    """
    n, stated, path = shard["samples"], shard["column_sizes"], folder / shard["raw_data"]["basename"]
    if stated[column]:
        return np.full(n, stated[column], np.int64)
    try:
        data = np.memmap(path, np.uint8, "r")
        rows = data[4 : 4 * (n + 1)].view(np.uint32).astype(np.int64)
        places = rows + 4 * sum(not size for size in stated[:column])
        return data[places[:, None] + np.arange(4)].view(np.uint32)[:, 0].astype(np.int64)
    except (IndexError, ValueError, OSError) as error:
        raise DataError(f"source mds: {path}: not the rows that its index states: {error}") from error
