import os
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from zoo.data.stale import SHARED_MEMORY, remove_stale

NAMES = ("barrier", "cache_usage", "locals", "next_epoch", "shard_access_times", "shard_states", "resume")


def old(path: Path) -> Path:
    path.write_bytes(b"x")
    os.utime(path, (0, 0))
    return path


def test_dead_segments_and_locks_go_wherever_the_numbers_start(tmp_path):
    dead = [old(tmp_path / f"00000{n}_{name}") for n in (2, 7) for name in NAMES]
    dead += [old(tmp_path / f"000002_{name}_filelock") for name in ("barrier", "cache")]
    others = [old(tmp_path / name) for name in ("000002_other", "2_barrier", "psm_1234", "x000002_locals")]
    assert set(remove_stale(tmp_path, tmp_path)) == set(dead)
    assert set(tmp_path.iterdir()) == set(others)


def test_segments_go_at_once_and_lock_files_later(tmp_path):
    """Lock files of another container may lie in the same temporary folder; they are empty and harm nobody."""
    (tmp_path / "000003_locals").write_bytes(b"x")
    (tmp_path / "000003_barrier_filelock").write_bytes(b"x")
    assert remove_stale(tmp_path, tmp_path) == [tmp_path / "000003_locals"]


def test_a_segment_that_is_being_made_stays(tmp_path):
    """Between its making and its first use, it is open but not yet mapped."""
    with (tmp_path / "000005_locals").open("wb"):
        assert remove_stale(tmp_path, tmp_path) == []
    assert remove_stale(tmp_path, tmp_path) == [tmp_path / "000005_locals"]


def test_a_lock_that_is_held_stays(tmp_path):
    import fcntl

    path = old(tmp_path / "000004_cache_filelock")
    with path.open("r") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert remove_stale(tmp_path, tmp_path) == []
    assert remove_stale(tmp_path, tmp_path) == [path]


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this system has no /dev/shm")
def test_segments_of_a_live_process_stay(tmp_path):
    name = "989898_locals"
    segment = SharedMemory(name, create=True, size=16)
    try:
        os.utime(SHARED_MEMORY / name, (0, 0))
        lock = old(tmp_path / "989898_barrier_filelock")
        # Asked from another process: this one's own segments must be seen as those of a stranger.
        code = (
            "import sys; from pathlib import Path; from zoo.data import remove_stale\n"
            "print(*remove_stale(locks=Path(sys.argv[1])))"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        assert name not in done.stdout
        assert (SHARED_MEMORY / name).exists()
        assert lock.exists()
    finally:
        segment.close()
        segment.unlink()
