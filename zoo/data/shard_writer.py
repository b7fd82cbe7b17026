"""MDS shards of arrays, written without Streaming: importing it takes 800 MB of memory and 6 s, all of them for torch.

The files are byte for byte those of Streaming's MDSWriter (a test compares them), which also reads them.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xxhash

LIMIT_BYTES = 1 << 26  # of a shard, not compressed; its rows are in memory until it is written
LEVEL = 3  # of zstd, as in MDSWriter
_MOST = (0xFF, 0xFFFF, 0xFFFFFFFF)  # the largest number of 1, 2 and 4 bytes, which write how long an array is


class ShardWriter:
    """Writes rows of 1-d arrays into folder/shard.NNNNN.mds.zstd, and folder/index.json at the end.

    columns: name -> MDS encoding, "ndarray:TYPE".  Raises ValueError for an array of another type, or an empty one.
    """

    def __init__(self, folder: Path, columns: Mapping[str, str]):
        self._folder = folder
        folder.mkdir(parents=True)
        self._types = {name: columns[name].removeprefix("ndarray:") for name in sorted(columns)}
        self._config = {
            "version": 2,
            "format": "mds",
            "compression": "zstd",
            "hashes": ["xxh64"],
            "size_limit": LIMIT_BYTES,
            "column_names": list(self._types),
            "column_encodings": [columns[name] for name in self._types],
            "column_sizes": [None] * len(self._types),
        }
        self._config_data = json.dumps(self._config, sort_keys=True).encode()
        self._shards: list[dict] = []
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._rows: list[bytes] = []
        self._bytes = 8 + len(self._config_data)

    def write(self, row: Mapping[str, np.ndarray]) -> None:
        """Add a row."""
        data = [_encoded(row[name], kind) for name, kind in self._types.items()]
        encoded = b"".join([np.array([len(value) for value in data], np.uint32).tobytes(), *data])
        if self._bytes + len(encoded) + 4 > LIMIT_BYTES:
            self._flush()
        self._rows.append(encoded)
        self._bytes += len(encoded) + 4

    def finish(self) -> None:
        """Write the last shard and the index."""
        if self._rows:
            self._flush()
        index = json.dumps({"version": 2, "shards": self._shards}, sort_keys=True)
        (self._folder / "index.json").write_text(index)

    def _flush(self) -> None:
        import zstd

        n = len(self._rows)
        begin = 4 + 4 * (n + 1) + len(self._config_data)
        places = (begin + np.cumsum([0, *map(len, self._rows)])).astype(np.uint32)
        raw = b"".join([np.uint32(n).tobytes(), places.tobytes(), self._config_data, *self._rows])
        self._begin_shard()
        zipped = zstd.compress(raw, LEVEL)
        name = f"shard.{len(self._shards):05}.mds"
        (self._folder / f"{name}.zstd").write_bytes(zipped)
        files = {"raw_data": _described(name, raw), "zip_data": _described(f"{name}.zstd", zipped)}
        self._shards.append({"samples": n, **files, **self._config})


def _encoded(values: np.ndarray, kind: str) -> bytes:
    """The bytes of an array of fixed type: axes and type of the shape in one byte, the shape, the values."""
    if values.dtype != kind or values.ndim != 1 or not values.size:
        raise ValueError(f"must be a row of {kind}, at least one; found {values.dtype} of shape {values.shape}")
    code = next(i for i, most in enumerate(_MOST) if values.size <= most)
    return bytes([1 << 2 | code]) + values.size.to_bytes(1 << code, "little") + values.tobytes()


def _described(name: str, data: bytes) -> dict:
    return {"basename": name, "bytes": len(data), "hashes": {"xxh64": xxhash.xxh64(data).hexdigest()}}
