"""Shared memory of Streaming while other runs make, fill and remove theirs."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from zoo.data import loader, shared
from zoo.data.errors import DataError
from zoo.data.stale import SHARED_MEMORY

pytestmark = pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="this system has no /dev/shm")


@pytest.fixture
def empty():
    """Make segments as another run has them for a moment: there, and not filled yet."""
    made = []

    def make(name):
        made.append(SHARED_MEMORY / name)
        made[-1].touch()
        return made[-1]

    yield make
    for path in made:
        path.unlink(missing_ok=True)


def test_opening_waits_until_the_segment_is_filled(empty):
    path = empty("zoo-test-half-made")

    def fill():
        time.sleep(0.2)
        os.truncate(path, 4096)

    filling = threading.Thread(target=fill)
    filling.start()
    memory = shared.SharedMemory(path.name, False)
    filling.join()
    assert memory.shm.size == 4096
    shared.let_go(memory)


def test_a_segment_that_stays_empty_is_an_error_after_a_while(empty, monkeypatch):
    monkeypatch.setattr(shared, "PATIENCE_S", 0.05)
    with pytest.raises(ValueError, match="empty file"):
        shared.SharedMemory(empty("zoo-test-never-filled").name, False)


def test_segments_of_another_run_are_not_touched(prep, of_text, empty):
    """Streaming opens those of every number, from the first on, until it finds a free one."""
    others = [empty(f"00000{number}_{name}") for number in range(3) for name in ("locals", "barrier", "epoch_shape")]
    holders = [path.open("rb") for path in others]  # a living run
    data = loader(prep(of_text()), "train", batch_size=2, shuffle=True, seed=1).dataloader
    assert len(list(data)) == len(data)
    data.dataset.close()
    assert all(path.exists() for path in others)
    for holder in holders:
        holder.close()


def test_numbers_are_not_used_again(prep, of_text):
    """What still cleans up after a run that was killed would remove the segments of the next one."""
    numbers = set()
    for _ in range(3):
        dataset = loader(prep(of_text()), "train", batch_size=2, shuffle=True, seed=1).dataloader.dataset
        numbers.add(dataset._shm_prefix_int)
        dataset.close()
    assert len(numbers) == 3


def test_a_number_that_somebody_has_is_not_taken(empty, monkeypatch):
    empty("123456_barrier")
    assert shared._claim(123456, ["a"]) is None
    drawn = iter([123456, 123456, 123457])
    monkeypatch.setattr(shared.secrets, "randbelow", lambda most: next(drawn))
    number, memory = shared._register(["/a"], [None], shared.World.detect())
    assert number == 123457
    shared.let_go(memory)


def test_two_runs_may_not_fetch_into_one_folder():
    world = shared.World.detect()
    number, memory = shared._register(["/cache/mds-1"], ["s3://bucket"], world)
    try:
        shared.let_go(shared._register(["/cache/mds-2"], ["s3://bucket"], world)[1])
        shared.let_go(shared._register(["/cache/mds-1"], [None], world)[1])
        with pytest.raises(DataError, match="/cache/mds-1: another run on this machine fetches shards into this"):
            shared._register(["/cache/mds-1"], ["s3://bucket"], world)
        assert [path.name for path in SHARED_MEMORY.glob(f"{number:06}_*")] == [f"{number:06}_locals"]
    finally:
        shared.let_go(memory)


def test_a_full_shared_memory_is_an_error_and_no_bus_error(monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device: '/dev/shm/zoo-test-full'"):
        shared.SharedMemory("zoo-test-full", True, 4096)
    assert not (SHARED_MEMORY / "zoo-test-full").exists()


def test_too_little_room_for_the_rows_is_said_before_training(prep, of_text, monkeypatch):
    room = type("Room", (), {"free": 100_000})
    monkeypatch.setattr(shared.shutil, "disk_usage", lambda path: room)
    prepared = prep(of_text())
    with pytest.raises(DataError, match=r"/dev/shm has 0.1 MB of room, .*workers: 4 need 0.\d MB; .*workers to 0"):
        loader(prepared, "train", batch_size=2, shuffle=True, seed=1, num_workers=4)


def test_too_few_open_files_for_readers_are_said_before_training(prep, of_text, monkeypatch):
    from zoo.data import loading

    prepared, limits = prep(of_text()), []
    monkeypatch.setattr(loading.resource, "setrlimit", lambda which, pair: limits.append(pair))
    monkeypatch.setattr(loading.resource, "getrlimit", lambda which: (32, 48))
    with pytest.raises(DataError, match=r"may have 48 open files here, and train\.workers: 1 needs 52; raise the"):
        loader(prepared, "train", batch_size=2, shuffle=True, seed=1, num_workers=1)
    monkeypatch.setattr(loading.resource, "getrlimit", lambda which: (32, loading.resource.RLIM_INFINITY))
    loading._check_open_files(1)
    assert limits == [(48, 48), (65536, loading.resource.RLIM_INFINITY)]


class Stubborn:
    """A row that cannot be handed over to another process."""

    def __reduce__(self):
        raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_reader_that_cannot_hand_over_a_batch_ends(prep, of_text, capfd):
    """Else training would wait for the batch for ever."""
    data = loader(prep(of_text()), "train", batch_size=2, shuffle=True, seed=1, num_workers=1).dataloader
    data.collate_fn = lambda rows: Stubborn()
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        next(iter(data))
    assert "which reads rows, ends: OSError: [Errno 24] Too many open files" in capfd.readouterr().err


def test_nothing_of_a_closed_dataset_stays(prep, of_text, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = loader(prep(of_text()), "train", batch_size=2, shuffle=True, seed=1).dataloader
    list(data)
    number = f"{data.dataset._shm_prefix_int:06}"
    assert list(Path(tmp_path).glob(f"{number}_*"))
    data.dataset.close()
    assert not [*Path(tmp_path).glob(f"{number}_*"), *SHARED_MEMORY.glob(f"{number}_*")]
