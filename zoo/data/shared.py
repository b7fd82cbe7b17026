"""Shared memory of Streaming 0.13: segments NNNNNN_locals, NNNNNN_barrier, ... of one number for each dataset.

| bite (all seen)                                                          | here                                  |
|--------------------------------------------------------------------------|---------------------------------------|
| each process looks for the first free number: while another run ends,    | rank 0 draws a number, and all        |
| those of one run find different ones, and wait for each other for ever   | processes of the run take it          |
| numbers are used again: what still cleans up after a killed run removes  | the number is drawn at random         |
| the segments of the next one                                             |                                       |
| the search opens segments of other runs, and one that is not filled yet  | there is no search; who opens a       |
| is "cannot mmap an empty file"                                           | segment waits until it is filled      |
| a full /dev/shm ends the process with SIGBUS, when a page is first used  | pages are allocated with the segment  |
"""

import atexit
import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory as BuiltinSharedMemory
from pathlib import Path

import numpy as np
import streaming.base.dataset as streaming_dataset
from composer.utils import dist
from streaming.base.constant import LOCALS
from streaming.base.shared import memory as streaming_memory
from streaming.base.shared import prefix
from streaming.base.shared.memory import SharedMemory
from streaming.base.world import World

from zoo.data.errors import DataError
from zoo.data.stale import SHARED_MEMORY

PATIENCE_S = 60.0  # a process that makes a segment fills it in microseconds, unless it is stopped
NUMBERS = 10**6


class _Patient(BuiltinSharedMemory):
    """Shared memory that is filled when it is opened, and has its pages when it is made."""

    def __init__(self, name: str | None = None, create: bool = False, size: int = 0):
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                super().__init__(name, create, size)
                break
            except (FileExistsError, FileNotFoundError):
                raise
            except OSError as error:  # its name is that within /dev/shm
                place = str(SHARED_MEMORY / (name or "").lstrip("/"))
                raise type(error)(error.errno, os.strerror(error.errno or 0), place) from error
            except ValueError as error:
                if create or "empty file" not in str(error) or time.monotonic() > end:
                    raise
                self.close()
                time.sleep(0.01)
        if create:
            self._allocate()

    def _allocate(self) -> None:
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(getattr(self, "_fd"), 0, self.size)  # noqa: B009 - private
        except OSError as error:
            self.close()
            self.unlink()
            if error.errno == errno.EINVAL:  # a file system that cannot
                return
            raise OSError(error.errno, os.strerror(error.errno or 0), str(SHARED_MEMORY / self.name)) from error


streaming_memory.BuiltinSharedMemory = _Patient


def check_room(needed: int, workers: int) -> None:
    """Raise DataError if fewer than `needed` bytes are free in /dev/shm, through which worker processes pass rows."""
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        larger = "make it larger (docker run --shm-size=1g; mount -o remount,size=1g /dev/shm)"
        fewer = ", or set train.workers to 0" if workers else ""
        raise DataError(
            f"{SHARED_MEMORY} has {free / 1e6:,.1f} MB of room, and the rows of train.workers: {workers} need "
            f"{needed / 1e6:,.1f} MB; {larger}{fewer}"
        )


@contextlib.contextmanager
def own_number() -> Iterator[None]:
    """Within the `with` a StreamingDataset gets its number from `_register`; all processes of the run must make one."""
    before = streaming_dataset.get_shm_prefix
    streaming_dataset.get_shm_prefix = _register
    try:
        yield
    finally:
        streaming_dataset.get_shm_prefix = before


def _register(
    streams_local: list[str], streams_remote: list[str | None], world: World, retry: int = 0
) -> tuple[int, SharedMemory]:
    """In place of Streaming's `get_shm_prefix`: the dataset's number, and the segment that says which folders it uses.

    Raises DataError if another dataset on this machine keeps remote shards in one of the folders.
    """
    prefix._check_self(streams_local)
    while True:
        drawn = [secrets.randbelow(NUMBERS)]
        dist.broadcast_object_list(drawn, src=0)
        claimed = _claim(drawn[0], streams_local) if world.is_local_leader else None
        if all(dist.all_gather_object(claimed is not None or not world.is_local_leader)):
            break
        if claimed is not None:  # taken on another machine
            let_go(claimed)
    if world.is_local_leader and any(streams_remote):
        try:
            _refuse_others(drawn[0], [mine for mine, far in zip(streams_local, streams_remote, strict=True) if far])
        except DataError:
            let_go(claimed)
            raise
    return drawn[0], claimed or SharedMemory(_name(drawn[0]), False)


def _claim(number: int, streams_local: list[str]) -> SharedMemory | None:
    """Make the first segment of a number; None if somebody has the number."""
    if SHARED_MEMORY.is_dir() and any(SHARED_MEMORY.glob(f"{number:06}_*")):
        return None
    content = prefix._pack_locals(streams_local, number)
    try:
        made = SharedMemory(_name(number), True, len(content))
    except FileExistsError:
        return None
    made.buf[: len(content)] = content
    return made


def _refuse_others(number: int, folders: list[str]) -> None:
    for path in SHARED_MEMORY.glob(f"[0-9]*_{LOCALS}"):
        if path.name == _name(number):
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):  # ended, another user's, or not Streaming's
            shared = set(folders) & set(_folders(path))
            if shared:
                raise DataError(
                    f"{min(shared)}: another run on this machine fetches shards into this folder; "
                    "wait for it, or set another data.cache_dir"
                )


def _folders(path: Path) -> list[str]:
    content = path.read_bytes()
    size = int(np.frombuffer(content[:4], np.int32)[0])
    return content[4:size].decode().split("\0")[:-1]


def _name(number: int) -> str:
    return f"{number:06}_{LOCALS}"


def let_go(memory: SharedMemory) -> None:
    """Close shared memory, and remove it if this process made it."""
    atexit.unregister(memory.cleanup)
    memory.cleanup()
