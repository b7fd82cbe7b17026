"""The index.json of MDS folders, which may be somebody else's: checked before a file that it names is touched."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from zoo.data.errors import DataError
from zoo.errors import first_mistake, shorten
from zoo.files import inside, read_json

MOST_INDEX_BYTES = 1 << 30
MOST_SHARD_BYTES = 1 << 32  # offsets inside a shard have four bytes
# Columns are decoded whole, row by row, so a column of another type is refused even where it would not be read.
NUMBERS = (*(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64")
ENCODINGS = ("bytes", "str", "int", "json", "ndarray", "str_int", "str_float", "str_decimal", *NUMBERS)


class File(BaseModel):
    """A file of a shard. Keys that are not known are left out, as in `Shard`."""

    basename: str
    bytes: int = Field(ge=0, le=MOST_SHARD_BYTES)
    hashes: dict[str, str]


class Shard(BaseModel):
    """What an index says of one shard; fields in the order of their names, as Streaming writes them."""

    column_encodings: list[str]
    column_names: list[str]
    column_sizes: list[int | None]
    compression: str | None
    format: Literal["mds"]
    hashes: list[str]
    raw_data: File
    samples: int = Field(ge=0)
    size_limit: int | str | None
    version: Literal[2]
    zip_data: File | None

    def problems(self, folder: Path) -> Iterator[tuple[str, str]]:
        """(key, what is wrong) for what the types do not say."""
        for name in ("raw_data", "zip_data"):
            file = getattr(self, name)
            if file is not None and (why := inside(folder, file.basename)):
                yield f"{name}.basename", why
        if len({len(self.column_names), len(self.column_encodings), len(self.column_sizes)}) > 1:
            yield "column_names", "must be as many as column_encodings and column_sizes"
        for encoding in self.column_encodings:
            if why := _encoding_problem(encoding):
                yield "column_encodings", why
        if any(size is not None and size < 0 for size in self.column_sizes):
            yield "column_sizes", f"must not be negative; found {self.column_sizes}"
        if self.raw_data.bytes < 4 * (self.samples + 2):  # the number of samples, and where each begins and ends
            yield "samples", f"must fit into the {self.raw_data.bytes:,} bytes of the shard; found {self.samples:,}"
        if (self.compression is None) != (self.zip_data is None):
            yield "compression", f"must be stated with zip_data, and only then; found {shorten(self.compression)}"


def _encoding_problem(encoding: str) -> str | None:
    kind, colon, numbers = encoding.partition(":")
    if kind not in ENCODINGS:
        return f"must be numbers, arrays, text or bytes; found {shorten(encoding)} (an unsafe type, or none of tokens)"
    if not colon or (kind == "ndarray" and numbers in NUMBERS):
        return None  # our own shards are checked without Streaming, which takes 750 MB and 20 s to import
    from streaming.base.format.mds.encodings import is_mds_encoding

    try:
        known = is_mds_encoding(encoding)
    except Exception:  # whatever reading the part after the colon ends in
        known = False
    return None if known else f"must be a type of MDS; found {shorten(encoding)}"


def read_index(folder: Path) -> list[dict[str, Any]]:
    """Return the shards that folder/index.json lists.

    Raises DataError if it is missing, damaged, of another version, or names files outside of the folder.
    """
    path = folder / "index.json"
    if not path.exists() and not path.is_symlink():
        raise DataError(f"{path}: no such file; an MDS folder has an index.json in the folder of its shards")
    index = read_json(path, "not the index of an MDS dataset", DataError, most=MOST_INDEX_BYTES)
    if index.get("version", 2) != 2 or not isinstance(index.get("shards"), list):
        found = f"found version {shorten(index.get('version'))}, shards {shorten(index.get('shards'))}"
        raise DataError(f"{path}: not the index of an MDS dataset: must have version 2 and a list of shards; {found}")
    shards = [_shard(path, number, value) for number, value in enumerate(index["shards"])]
    _check_names(path, shards)
    return shards


def _shard(path: Path, number: int, value: Any) -> dict[str, Any]:
    try:
        shard = Shard.model_validate(value, strict=True)
    except ValidationError as error:
        why = first_mistake(error, f"shards[{number}]", found=True)
        raise DataError(f"{path}: not the index of an MDS dataset: {why}") from error
    for key, why in shard.problems(path.parent):
        raise DataError(f"{path}: not the index of an MDS dataset: shards[{number}].{key}: {why}")
    return shard.model_dump()


def _check_names(path: Path, shards: list[dict]) -> None:
    names = [file["basename"] for shard in shards for file in (shard["raw_data"], shard["zip_data"]) if file]
    seen: set[str] = {"index.json"}
    for name in names:
        if name in seen:
            raise DataError(f"{path}: not the index of an MDS dataset: two files have the name {shorten(name)}")
        seen.add(name)
