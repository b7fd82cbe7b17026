"""What killed runs leave behind: shared memory segments and lock files of Streaming, numbered by run.

Streaming's own `clean_stale_shared_memory` stops at the first unused number and unlinks segments of live runs too.
"""

import contextlib
import fcntl
import os
import re
import tempfile
import time
from pathlib import Path

SEGMENT = re.compile(
    r"^(\d{6})_(barrier|cache_usage|epoch_data|epoch_shape|locals|next_epoch|resume|shard_access_times|shard_states)$"
)
LOCK = re.compile(r"^(\d{6})_(barrier|cache)_filelock$")
SHARED_MEMORY = Path("/dev/shm")
LOCK_AGE_S = 3600.0  # a younger lock file may be of a container that shares the temporary folder, but not /dev/shm


def remove_stale(shared_memory: Path = SHARED_MEMORY, locks: Path | None = None) -> list[Path]:
    """Remove this user's segments that no process holds, and old lock files of such numbers that nobody holds.

    Returns what was removed.  Processes that this one cannot see (another container sharing /dev/shm) are not known to
    be alive; sharing /dev/shm between containers is not supported, as it is not by Streaming.
    """
    locks = locks or Path(tempfile.gettempdir())
    old = [path for path in _mine(locks, LOCK) if _age_s(path) > LOCK_AGE_S]
    found = [*_mine(shared_memory, SEGMENT), *old]
    if not found:
        return []
    live = _live_numbers(shared_memory)  # after the list: who makes a segment holds it open from the first moment
    return [path for path in found if path.name[:6] not in live and _remove(path)]


def _mine(folder: Path, pattern: re.Pattern) -> list[Path]:
    if not folder.is_dir():
        return []
    named = sorted(path for path in folder.iterdir() if pattern.match(path.name))
    return [path for path in named if _owner(path) == os.getuid()]


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _live_numbers(shared_memory: Path) -> set[str]:
    """Numbers of the segments that some process maps or holds open.  Reads /proc: psutil reads smaps, far slower."""
    segment = re.compile(rf"(?:^| ){re.escape(str(shared_memory))}/(\d{{6}})_", re.M)
    live: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended, or is not ours to look into
            live.update(segment.findall((process / "maps").read_text(errors="replace")))
            opened = [_target(link) for link in (process / "fd").iterdir()]
            live.update(segment.findall("\n".join(opened)))
    return live


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _remove(path: Path) -> bool:
    try:
        if LOCK.match(path.name):
            with path.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        else:
            path.unlink()
    except OSError:
        return False
    return True
