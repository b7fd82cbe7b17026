"""MDS shards on disk: written so that a crash leaves no half shard in place, and checked before they are read.

Streaming checks hashes only after a download or decompression, and a missing shard makes it wait for ever.  So local
shards are checked first (`make_ready`), and decompressed here, where several runs may do it at the same time.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from zoo.data.errors import DataError
from zoo.data.mds_index import read_index
from zoo.data.shard_writer import ShardWriter
from zoo.errors import shorten
from zoo.files import create, open_file, read_json, sync_files, write_sealed_json

HASH = "xxh64"
CHUNK_BYTES = 1 << 22
CODECS = {"zstd": "zstd", "gz": "gzip", "bz2": "bz2", "br": "brotli"}  # Streaming's names -> pyarrow's


def write_shards(folder: Path, columns: dict[str, str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as compressed, hashed shards with an index, synced to disk; return how many rows."""
    n = 0
    writer = ShardWriter(folder, columns)
    for row in rows:
        writer.write(row)
        n += 1
    writer.finish()
    sync_files(folder)
    return n


def merge_indexes(folder: Path) -> list[dict]:
    """Write folder/index.json over the shards of its subfolders, in the order of their names; return the shards."""
    shards = []
    for index in sorted(folder.glob("*/index.json")):
        for shard in read_json(index)["shards"]:
            for file in (shard["raw_data"], shard["zip_data"]):
                if file:
                    file["basename"] = f"{index.parent.name}/{file['basename']}"
            shards.append(shard)
    write_sealed_json(folder / "index.json", {"version": 2, "shards": shards})
    return shards


def make_ready(folder: Path, remedy: str) -> None:
    """Check every shard of a local folder by size and hash, and decompress where that is not done yet.

    A decompressed copy that is wrong is made again.  Raises DataError naming the first bad shard, ending with `remedy`.
    """
    _for_each_shard(folder, _make_shard_ready, remedy)


def make_first_shard_ready(folder: Path, remedy: str) -> None:
    """As `make_ready`, for the first shard alone."""
    problem = _make_shard_ready(folder, read_index(folder)[0])
    if problem:
        raise DataError(f"{problem}; {remedy}")


def remove_broken(folder: Path) -> None:
    """Remove what is broken from the local side of remote shards, so that it is fetched again."""
    _for_each_shard(folder, _remove_broken_files, "remove it")


def _for_each_shard(folder: Path, check: Callable[[Path, dict], str | None], remedy: str) -> None:
    shards = read_index(folder)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for problem in pool.map(lambda shard: check(folder, shard), shards):
            if problem:
                raise DataError(f"{problem}; {remedy}")


def _make_shard_ready(folder: Path, shard: dict) -> str | None:
    raw, zipped = shard["raw_data"], shard.get("zip_data")
    if not zipped:
        return file_problem(folder, raw)
    # Streaming deletes a decompressed file whose compressed one is gone, so both must be there.
    if file_problem(folder, raw) is None and (folder / zipped["basename"]).is_file():
        return None
    return file_problem(folder, zipped) or _decompress(folder, shard)


def _decompress(folder: Path, shard: dict) -> str | None:
    """Write the decompressed copy of a shard; returns what went wrong, None if nothing did."""
    raw, zipped = shard["raw_data"], folder / shard["zip_data"]["basename"]
    path = folder / raw["basename"]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with create(temporary) as file:
            expand(zipped, shard["compression"], file, raw["bytes"])
        temporary.replace(path)
    except DataError as error:
        temporary.unlink(missing_ok=True)
        return str(error)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        ways = "`zoo data prepare` decompresses what it makes; ready shards can be given as `remote`"
        return f"{path}: cannot be written: {error.strerror} (of a read-only folder: {ways})"
    return file_problem(folder, raw)


def expand(path: Path, compression: str, file: BinaryIO, most: int) -> None:
    """Decompress `path` into `file`, piece by piece.

    Raises DataError for more than `most` bytes, whatever the archive says of its size, and for what is no archive.
    """
    import pyarrow

    kind = compression.partition(":")[0]
    with open_file(path, DataError) as packed:
        try:
            if kind == "snappy":
                _expand_snappy(packed.read(), file, most)
            elif kind in CODECS:
                _copy(pyarrow.CompressedInputStream(packed, CODECS[kind]), file, most)
            else:
                raise ValueError(f"must be compressed with {', '.join(CODECS)} or snappy; found {shorten(compression)}")
        except (pyarrow.ArrowException, ValueError, EOFError) as error:
            raise DataError(f"{path}: this shard is damaged: {error}") from error
        except OSError as error:
            if error.errno is not None:  # a disk's; pyarrow's have no number
                raise
            raise DataError(f"{path}: this shard is damaged: {error}") from error


def _copy(source: Any, file: BinaryIO, most: int) -> None:
    while piece := source.read(min(CHUNK_BYTES, most + 1)):
        most -= len(piece)
        if most < 0:
            raise ValueError("it decompresses to more bytes than its index says")
        file.write(piece)


def _expand_snappy(data: bytes, file: BinaryIO, most: int) -> None:
    """Raw snappy: its first bytes state the size, seven bits each, and no more is written."""
    import pyarrow

    size = sum((byte & 127) << 7 * place for place, byte in enumerate(data[:5]) if all(b > 127 for b in data[:place]))
    if size > most:
        raise ValueError("it decompresses to more bytes than its index says")
    file.write(pyarrow.decompress(data, decompressed_size=size, codec="snappy", asbytes=True))


def _remove_broken_files(folder: Path, shard: dict) -> str | None:
    for info in (shard["raw_data"], shard.get("zip_data")):
        if info and (problem := file_problem(folder, info)):
            try:
                (folder / info["basename"]).unlink(missing_ok=True)
            except OSError:  # a folder in its place, or a folder that may not be written
                return problem
    return None


def file_problem(folder: Path, info: dict) -> str | None:
    """What is wrong with a file of a shard by its size and its first hash, None if nothing is."""
    path = folder / info["basename"]
    if not path.exists() and not path.is_symlink():
        return f"{path}: this shard is missing"
    try:
        with open_file(path, DataError) as file:
            size = os.fstat(file.fileno()).st_size
            if size != info["bytes"]:
                return f"{path}: this shard is damaged: {size:,} bytes, {info['bytes']:,} expected"
            for algorithm, expected in list(info["hashes"].items())[:1]:
                found = _digest(file, algorithm)
                if found != expected:
                    return f"{path}: this shard is damaged: {algorithm} {found}, {shorten(expected)} expected"
    except DataError as error:
        return str(error)
    except (OSError, ValueError) as error:
        return f"{path}: this shard cannot be read: {getattr(error, 'strerror', None) or error}"
    return None


def _digest(file: BufferedReader, algorithm: str) -> str:
    """The hash of a file, read piece by piece.  Raises ValueError for an algorithm that Streaming does not have."""
    if algorithm in hashlib.algorithms_available and "shake" not in algorithm:
        return hashlib.file_digest(file, algorithm).hexdigest()
    if algorithm not in xxhash.algorithms_available:
        raise ValueError(f"unknown hash {shorten(algorithm)} in its index")
    return hashlib.file_digest(file, getattr(xxhash, algorithm)).hexdigest()


def hash_name(shards: list[dict]) -> str | None:
    """The hash that all shards state for their files, for Streaming's own check after download and decompression."""
    stated = [set((s.get("zip_data") or s["raw_data"])["hashes"]) for s in shards]
    common = set.intersection(*stated) if stated else set()
    return HASH if HASH in common else min(common, default=None)
