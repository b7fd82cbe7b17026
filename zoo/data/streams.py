"""Streaming's Stream with checks on what others wrote: indexes, sizes, and what is downloaded."""

import copy
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streaming import Stream
from streaming.base.format import reader_from_json

from zoo.data.errors import DataError
from zoo.data.mds_index import read_index
from zoo.data.remote import check_local, remove_links
from zoo.data.shard_reader import made_quick
from zoo.data.shards import expand, file_problem
from zoo.files import create


class CheckedStream(Stream):
    """A stream that takes only an index which `read_index` accepts, and decompresses no more than it says.

    Streaming 0.13 takes any file name of an index, decompresses a shard whole in memory, whatever its size, and stops
    at keys of later versions.
    """

    def get_shards(self, world: Any, allow_unsafe_types: bool) -> list:
        """The readers of the shards.  Raises DataError for an index that is damaged or names files elsewhere."""
        folder = Path(self.local, self.split)
        found = read_index(folder)
        self._raw_bytes = {str(folder / shard["raw_data"]["basename"]): shard["raw_data"]["bytes"] for shard in found}
        shards = [reader_from_json(self.local, self.split, copy.deepcopy(shard)) for shard in found]
        for shard in shards:
            shard.validate(allow_unsafe_types)
        return made_quick(shards)

    def _download_file(self, from_basename: str, to_basename: str | None = None) -> str:
        if self.remote is not None:
            check_local(os.path.join(self.remote, self.split, from_basename))
            remove_links(Path(self.local, self.split, to_basename or from_basename))
        return super()._download_file(from_basename, to_basename)

    def _decompress_shard_part(self, zip_info, zip_filename: str, raw_filename: str, compression: str | None) -> None:
        packed, raw = Path(zip_filename), Path(raw_filename)
        if problem := file_problem(packed.parent, asdict(zip_info) | {"basename": packed.name}):
            raise DataError(problem)
        temporary = Path(f"{raw_filename}.tmp")
        with create(temporary) as file:
            expand(packed, compression or "", file, self._raw_bytes[str(raw)])
        temporary.replace(raw)
        if not self.safe_keep_zip:
            packed.unlink()
