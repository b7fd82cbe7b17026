"""Ready MDS shards as a source: found or fetched, and looked into before they are trusted."""

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import xxhash

from zoo.data.config import Mds
from zoo.data.errors import DataError
from zoo.data.files import local_path
from zoo.data.packing import Counts, Tokenizer
from zoo.data.prepared import RowStream
from zoo.data.remote import renew_index
from zoo.data.shards import make_first_shard_ready, read_index

SAMPLE_ROWS = 64
FEWEST_TOKENS = 16  # to conclude anything from zeros
TYPES = ("uint16", "uint32", "int32", "int64")  # what `bytes_dtype` can be


def open_mds(
    source: Mds,
    tokenizer: Tokenizer | None,
    root: Path,
    *,
    seq_len: int,
    vocab_size: int,
    say: Callable[[str], None] = print,
) -> tuple[str, RowStream]:
    """Return the content key and the rows of ready shards.  Local shards are sampled: columns, length, token numbers.

    Bytes are estimated from the sample where a tokenizer is stated; for remote shards they are not known.  Copies of
    remote shards that were made anew since are dropped.  say: called with what to tell the user.
    """
    folder = _folder(source, root)
    remote = source.remote and "/".join(part for part in (source.remote.rstrip("/"), source.split) if part)
    if remote:
        renew_index(remote, folder, say)
    shards = read_index(folder)
    rows = sum(shard["samples"] for shard in shards)
    if not rows:
        raise DataError(f"source mds: {folder}: no rows")
    for name in filter(None, (source.tokens_column, source.labels_column)):
        for columns in {tuple(shard["column_names"]) for shard in shards}:
            if name not in columns:
                raise DataError(f"source mds: {folder}: no column {name!r}; it has {', '.join(columns)}")
    several = source.end_of_document is not None or any("starts" in shard["column_names"] for shard in shards)
    counts = Counts(rows, None, rows * seq_len, rows, max_documents=None if several else 2)  # padding is the second
    stream = RowStream(folder, source, counts, remote=remote, ours=False)
    if not remote:
        _look_into(stream, shards[0], tokenizer, seq_len, vocab_size)
    return xxhash.xxh64(json.dumps([shards, source.model_dump(exclude={"local"})]).encode()).hexdigest(), stream


def token_numbers(source: Mds, value: object) -> np.ndarray:
    """Return a column's value as int64, whether it holds an array or plain bytes."""
    if isinstance(value, bytes):
        if len(value) % np.dtype(source.bytes_dtype).itemsize:
            raise DataError(
                f"source mds: {source.local or source.remote}: a row of {len(value)} bytes is no whole number of "
                f"{source.bytes_dtype}; set bytes_dtype to the type of the numbers"
            )
        return np.frombuffer(value, source.bytes_dtype).astype(np.int64)
    if isinstance(value, np.ndarray) and value.ndim == 1 and np.issubdtype(value.dtype, np.integer):
        return value.astype(np.int64)
    raise DataError(
        f"source mds: column {source.tokens_column!r} must hold whole numbers; found {type(value).__name__}"
    )


def document_starts(source: Mds, sample: dict, tokens: np.ndarray) -> np.ndarray:
    """Return the places in a row where a document begins, place 0 included."""
    if source.end_of_document is not None:
        return np.concatenate([[0], np.flatnonzero(tokens[:-1] == source.end_of_document) + 1])
    return np.asarray(sample.get("starts", [0]), np.int64)


def check_row(source: Mds, tokens: np.ndarray, vocab_size: int) -> None:
    """Raise DataError if a row's token numbers do not fit the model."""
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        worst = tokens.max() if tokens.max() >= vocab_size else tokens.min()
        place = source.local or source.remote
        raise DataError(f"source mds: {place}: token {worst} in a row; model.vocab_size = {vocab_size}")


def _folder(source: Mds, root: Path) -> Path:
    if source.local:
        folder = local_path(source.local).absolute()
    else:
        folder = root / f"mds-{xxhash.xxh64((source.remote or '').encode()).hexdigest()}"
    return folder / source.split if source.split else folder


def _check_type(folder: Path, stated: str, values: list, vocab_size: int) -> None:
    """Raise DataError where plain bytes are not of the type that `bytes_dtype` states."""
    values = [value for value in values if isinstance(value, bytes)]
    if not values or _may_be(stated, values, vocab_size):
        return
    others = [name for name in TYPES if name != stated and _may_be(name, values, vocab_size)]
    width = np.dtype(stated).itemsize
    odd = next((row for row, value in enumerate(values) if len(value) % width), None)
    if others or odd is not None:
        row = odd or 0
        raise DataError(
            f"source mds: {folder}: row {row}: its {len(values[row])} bytes are not token numbers of type "
            f"{stated} below model.vocab_size = {vocab_size}; set bytes_dtype to the type of the numbers "
            f"({' or '.join(others) + ' would fit' if others else 'no type fits: are the rows damaged?'})"
        )


def _may_be(name: str, values: list[bytes], vocab_size: int) -> bool:
    """Whether rows of plain bytes can be token numbers of a type.

    Numbers of a wider type leave a zero in every second place of every row, and all of them are in range.
    """
    if any(len(value) % np.dtype(name).itemsize for value in values):
        return False
    rows = [np.frombuffer(value, name) for value in values]
    fits = all(row.min() >= 0 and row.max() < vocab_size for row in rows if row.size)
    too_narrow = any(row[::2].any() for row in rows) and not any(row[1::2].any() for row in rows)
    return bool(fits and not (too_narrow and sum(map(len, rows)) >= FEWEST_TOKENS))


def rows_of(folder: Path, shard: dict, places: Iterable[int]) -> Iterator[dict]:
    """Decoded rows of a local shard whose files have been checked.  Raises DataError naming the shard and the row."""
    from streaming.base.format import reader_from_json

    path = folder / shard["raw_data"]["basename"]
    try:
        reader = reader_from_json(str(folder), "", copy.deepcopy(shard))
        reader.validate(allow_unsafe_types=False)
    except Exception as error:  # an index can be wrong in ways that only the reader notices
        raise DataError(f"source mds: {path}: {type(error).__name__}: {error}") from error
    for place in places:
        try:
            row = reader[place]
        except Exception as error:  # so can a shard
            raise DataError(
                f"source mds: {path}: row {place} cannot be read: {type(error).__name__}: {error}"
            ) from error
        yield row


def _look_into(stream: RowStream, shard: dict, tokenizer: Tokenizer | None, seq_len: int, vocab_size: int) -> None:
    make_first_shard_ready(stream.folder, stream.remedy)
    places = range(min(SAMPLE_ROWS, shard["samples"]))
    source = cast(Mds, stream.source)
    values = [row[source.tokens_column] for row in rows_of(stream.folder, shard, places)]
    _check_type(stream.folder, source.bytes_dtype, values, vocab_size)
    rows = [token_numbers(source, value) for value in values]
    if not rows:
        raise DataError(f"source mds: {stream.folder / shard['raw_data']['basename']}: no rows in the first shard")
    if len(rows[0]) < seq_len:
        raise DataError(
            f"source mds: {stream.folder}: rows of {len(rows[0])} tokens; seq_len = {seq_len} needs as many"
        )
    for row in rows:
        check_row(source, row, vocab_size)
    if tokenizer:
        end = tokenizer.end_of_document
        size = sum(len(tokenizer.decode(row.tolist()).encode()) + int((row == end).sum()) for row in rows)
        stream.counts.bytes = round(size / sum(map(len, rows)) * stream.counts.tokens)
