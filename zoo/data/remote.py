"""Copies of remote shards: kept in a local folder, and dropped when the shards at the remote were made anew."""

import filecmp
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from zoo.data.errors import DataError
from zoo.data.mds_index import read_index
from zoo.files import check_file, make_folder, present

FETCH_SECONDS = 60.0


def renew_index(remote: str, folder: Path, say: Callable[[str], None]) -> None:
    """Fetch the index of remote shards into `folder`, and drop the copies there that are not of its shards.

    If the remote cannot be reached, an index that is there already is used, and `say` is told.  Raises DataError if
    there is none.  Shards without hashes are known by their sizes, and in a folder of this machine by their times.
    """
    index = folder / "index.json"
    try:
        new = _fetched(remote, folder)
    except DataError as error:
        if not present(index, DataError):
            raise
        say(f"{error}; the copies in {folder} are used as they are")
        return
    if not present(index, DataError):
        new.replace(index)
        return
    if filecmp.cmp(new, index, shallow=False):
        new.unlink()
    else:
        before = _files(folder)
        new.replace(index)
        after = _files(folder)
        for name, info in before.items():
            if after.get(name) != info or not info[1]:
                (folder / name).unlink(missing_ok=True)
        say(f"the shards of {remote} were made anew; their copies in {folder} are fetched again")
    for name in _outdated(remote, folder):
        (folder / name).unlink(missing_ok=True)


def _fetched(remote: str, folder: Path) -> Path:
    from streaming.base.storage.download import CloudDownloader

    temporary = folder / "index.json.tmp"
    make_folder(folder, DataError)
    temporary.unlink(missing_ok=True)
    remove_links(temporary)
    check_local(f"{remote}/index.json")
    try:
        CloudDownloader.direct_download(f"{remote}/index.json", str(temporary), FETCH_SECONDS)
    except Exception as error:  # each store has its own errors
        raise DataError(
            f"source mds: {remote}/index.json cannot be fetched: {type(error).__name__}: {error}"
        ) from error
    return temporary


def _files(folder: Path) -> dict[str, tuple[int, dict]]:
    """Size and hashes of every file that the index names; none for an index that cannot be read."""
    try:
        shards = read_index(folder)
    except DataError:
        return {}
    infos = [info for shard in shards for info in (shard["raw_data"], shard.get("zip_data")) if info]
    return {info["basename"]: (info["bytes"], info.get("hashes") or {}) for info in infos}


def _outdated(remote: str, folder: Path) -> Iterator[str]:
    """Copies of shards without hashes that are older than what they were copied from, in a folder of this machine."""
    there = Path(remote.removeprefix("file://"))
    if "://" in str(there) or not there.is_dir():
        return
    for shard in read_index(folder):
        infos = [info for info in (shard["raw_data"], shard.get("zip_data")) if info]
        if any(info.get("hashes") for info in infos):
            continue
        sources = [time for info in infos if (time := _changed(there / info["basename"])) is not None]
        for info in infos:
            copied = _changed(folder / info["basename"])
            if copied is not None and sources and max(sources) > copied:
                yield info["basename"]


def _changed(path: Path) -> int | None:
    """When a file was last changed, in nanoseconds; None if there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def remove_links(path: Path) -> None:
    """Remove the links that fetching a file to `path` would write through.

    Streaming fetches to PATH.tmp, and takes a link to nothing for no file.
    """
    for place in (path, path.with_name(f"{path.name}.tmp")):
        if place.is_symlink() and not (place == path and place.exists()):
            place.unlink()


def check_local(remote: str) -> None:
    """Refuse what is no file in a remote that is a folder: copying from a FIFO or a device would not end."""
    if "://" not in remote:
        check_file(remote, DataError)
