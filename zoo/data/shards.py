"""MDS shards on disk: written so that a crash leaves no half shard in place, and checked before they are read.

Streaming checks hashes only after a download or decompression, and a missing shard makes it wait for ever.  So local
shards are checked first (`make_ready`), and decompressed here, where several runs may do it at the same time.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zoo.data.errors import DataError
from zoo.files import sync_files, write_json

HASH = "xxh64"
COMPRESSION = "zstd"
SHARD_BYTES = 1 << 26


def write_shards(folder: Path, columns: dict[str, str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as compressed, hashed shards with an index, synced to disk; return how many rows."""
    from streaming import MDSWriter

    n = 0
    writer = MDSWriter(out=str(folder), columns=columns, compression=COMPRESSION, hashes=[HASH], size_limit=SHARD_BYTES)
    with writer:
        for row in rows:
            writer.write(row)
            n += 1
    sync_files(folder)
    return n


def merge_indexes(folder: Path) -> list[dict]:
    """Write folder/index.json over the shards of its subfolders, in the order of their names; return the shards."""
    shards = []
    for index in sorted(folder.glob("*/index.json")):
        for shard in json.loads(index.read_text())["shards"]:
            for file in (shard["raw_data"], shard["zip_data"]):
                if file:
                    file["basename"] = f"{index.parent.name}/{file['basename']}"
            shards.append(shard)
    write_json(folder / "index.json", {"version": 2, "shards": shards})
    return shards


def read_index(folder: Path) -> list[dict]:
    """Return the shards that folder/index.json lists.  Raises DataError if it is missing or broken."""
    path = folder / "index.json"
    try:
        index = json.loads(path.read_bytes())
        shards = index["shards"]
        _ = [(s["samples"], s["raw_data"]["basename"], s["raw_data"]["bytes"], s["column_names"]) for s in shards]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; an MDS folder has an index.json beside its shards") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the index of an MDS dataset: {type(error).__name__}: {error}") from error
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
        return _problem(folder, raw)
    # Streaming deletes a decompressed file whose compressed one is gone, so both must be there.
    if _problem(folder, raw) is None and (folder / zipped["basename"]).is_file():
        return None
    return _problem(folder, zipped) or _decompress(folder, shard)


def _decompress(folder: Path, shard: dict) -> str | None:
    from streaming.base.compression import decompress

    raw = shard["raw_data"]
    path = folder / raw["basename"]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(decompress(shard["compression"], (folder / shard["zip_data"]["basename"]).read_bytes()))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        return f"{path}: cannot be written: {error.strerror} (a read-only folder can be given as `remote`)"
    return _problem(folder, raw)


def _remove_broken_files(folder: Path, shard: dict) -> None:
    for info in (shard["raw_data"], shard.get("zip_data")):
        if info and _problem(folder, info):
            (folder / info["basename"]).unlink(missing_ok=True)


def _problem(folder: Path, info: dict) -> str | None:
    from streaming.base.hashing import get_hash

    path = folder / info["basename"]
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return f"{path}: this shard is missing"
    except OSError as error:
        return f"{path}: this shard cannot be read: {error.strerror}"
    if len(data) != info["bytes"]:
        return f"{path}: this shard is damaged: {len(data):,} bytes, {info['bytes']:,} expected"
    for algorithm, expected in list(info["hashes"].items())[:1]:
        found = get_hash(algorithm, data)
        if found != expected:
            return f"{path}: this shard is damaged: {algorithm} {found}, {expected} expected"
    return None


def hash_name(shards: list[dict]) -> str | None:
    """The hash that all shards state for their files, for Streaming's own check after download and decompression."""
    stated = [set((s.get("zip_data") or s["raw_data"])["hashes"]) for s in shards]
    common = set.intersection(*stated) if stated else set()
    return HASH if HASH in common else min(common, default=None)
