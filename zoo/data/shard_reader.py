"""Rows of a shard that is here, from a file that stays mapped.

Streaming 0.13 opens, seeks, reads and closes the file for every row, and parses the encodings of its columns each time.
That is several times the work of the row itself, and a small model takes 256 rows in 10 ms. Each of those calls also
lets go of Python's lock, which Streaming's own threads then hold for milliseconds; reading mapped memory does not.
"""

import mmap
import os
import struct
from collections import OrderedDict
from typing import Any

import numpy as np
from streaming.base.format.mds.encodings import _get_coder
from streaming.base.format.mds.reader import MDSReader

MAX_OPEN = 64  # files of one process; a shuffle reads from as many shards as its block spans

_open: "OrderedDict[int, QuickReader]" = OrderedDict()


class QuickReader(MDSReader):
    """An MDSReader that keeps its file mapped while it is among the MAX_OPEN latest to be opened."""

    _file: mmap.mmap | None = None
    _coders: list | None = None

    def get_sample_data(self, idx: int) -> bytes:
        """The bytes of a row. Raises FileNotFoundError if the shard is not here, IndexError if it has no such row."""
        if self._file is None:
            self._begin()
        if self._file is not None and idx + 1 < len(self._offsets):
            begin, end = int(self._offsets[idx]), int(self._offsets[idx + 1])
            if begin < end <= len(self._file):
                return self._file[begin:end]
        raise IndexError(f"Relative sample index {idx} is not present in the {self.raw_data.basename} file.")

    def decode_sample(self, data: bytes) -> dict[str, Any]:
        """A row's columns by name."""
        if self._coders is None:
            self._coders = [_get_coder(encoding) for encoding in self.column_encodings]
        sizes, at = [], 0
        for size in self.column_sizes:
            if not size:
                (size,) = struct.unpack_from("<I", data, at)
                at += 4
            sizes.append(size)
        sample = {}
        for name, coder, size in zip(self.column_names, self._coders, sizes, strict=True):
            sample[name] = coder.decode(data[at : at + size])
            at += size
        return sample

    def _begin(self) -> None:
        with open(os.path.join(self.dirname, self.split, self.raw_data.basename), "rb") as file:
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        head = self._file[: 4 * (self.samples + 2)]  # the number of rows, where each begins, where the last ends
        self._offsets = np.frombuffer(head[: len(head) // 4 * 4], np.uint32)[1:]
        _open[id(self)] = self
        if len(_open) > MAX_OPEN:
            _open.popitem(last=False)[1].end()

    def end(self) -> None:
        """Close the file; the next row maps it again."""
        _open.pop(id(self), None)
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is not forked: it opens the file itself."""
        return {name: value for name, value in vars(self).items() if name != "_file"}


def made_quick(readers: list) -> list:
    """The readers, those of the MDS format as QuickReaders."""
    for reader in readers:
        if type(reader) is MDSReader:
            reader.__class__ = QuickReader
    return readers
