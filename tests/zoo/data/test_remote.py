"""Remote shards: kept in a folder, fetched again when they were made anew, used as they are without a network."""

import errno
import os
import shutil

import numpy as np
import pytest

from zoo.data import DataError, loader
from zoo.data.identity import DataRecord

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file.*shard:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO.*shard:pytest.PytestUnraisableExceptionWarning"),
]
PLAIN = {"hashes": []}
PACKED = {"hashes": ["xxh64"], "compression": "zstd"}


def write(folder, first, n_rows=30, **settings):
    """Shards whose every row begins with the number `first`; as many bytes for each of them."""
    from streaming import MDSWriter

    shutil.rmtree(folder, ignore_errors=True)
    with MDSWriter(out=str(folder), columns={"tokens": "ndarray:int64"}, size_limit=1 << 12, **settings) as writer:
        for i in range(n_rows):
            writer.write({"tokens": np.array([first, *np.random.default_rng(i).integers(1, 900, 32)])})


def firsts(prepared):
    batches = loader(prepared, "train", batch_size=1, shuffle=False, seed=0).dataloader
    found = [int(batch["input_ids"][0, 0]) for batch in batches]
    batches.dataset.close()
    return found


@pytest.fixture
def data(tmp_path):
    source = {"kind": "mds", "remote": str(tmp_path / "remote"), "local": str(tmp_path / "kept")}
    return {"source": source, "validation_fraction": 0}


@pytest.mark.parametrize("settings", [PLAIN, PACKED, {**PACKED, "hashes": []}])
def test_shards_made_anew_at_the_remote_are_read(prep, data, tmp_path, settings, capfd):
    write(tmp_path / "remote", 11, **settings)
    before = prep(data, quiet=False)
    assert firsts(before) == [11] * 30
    record = DataRecord.of(before)
    write(tmp_path / "remote", 22, **settings)
    now = prep(data, quiet=False)
    assert firsts(now) == [22] * 30
    if settings["hashes"]:
        assert "were made anew; their copies in" in capfd.readouterr().err
        assert DataRecord.of(now).differences(record, tmp_path)


def test_more_rows_at_the_remote_are_read_and_gone_shards_are_dropped(prep, data, tmp_path):
    write(tmp_path / "remote", 11, **PACKED)
    firsts(prep(data))
    write(tmp_path / "remote", 22, n_rows=5, **PACKED)
    assert firsts(prep(data)) == [22] * 5
    assert len(list((tmp_path / "kept").glob("shard*"))) == len(list((tmp_path / "remote").glob("shard*")))


def test_unchanged_shards_are_not_fetched_again(prep, data, tmp_path):
    write(tmp_path / "remote", 11, **PLAIN)
    firsts(prep(data))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    firsts(prep(data))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()} == times


def test_copies_in_a_folder_of_ones_own_need_no_data_cache(prep, data, tmp_path, monkeypatch):
    write(tmp_path / "remote", 11, **PACKED)

    def read_only(path):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("zoo.data.preparing._lock_file", read_only)
    assert firsts(prep(data)) == [11] * 30


def test_without_the_remote_the_copies_are_used_and_it_is_said(prep, data, tmp_path, capfd):
    write(tmp_path / "remote", 11, **PACKED)
    firsts(prep(data))
    os.rename(tmp_path / "remote", tmp_path / "away")
    assert firsts(prep(data, quiet=False)) == [11] * 30
    said = capfd.readouterr().err
    assert "remote/index.json: no such file; the copies in " in said
    assert "kept are used as they are" in said
    shutil.rmtree(tmp_path / "kept")
    with pytest.raises(DataError, match=r"remote/index\.json: no such file"):
        prep(data)


@pytest.mark.parametrize("settings", [PLAIN, PACKED])
def test_nothing_is_written_through_links_among_the_copies(prep, data, tmp_path, settings):
    """Streaming fetches to NAME.tmp; the folder of copies may be somebody else's."""
    write(tmp_path / "remote", 11, **settings)
    kept, outside = tmp_path / "kept", tmp_path / "outside"
    kept.mkdir()
    outside.mkdir()
    for path in (tmp_path / "remote").iterdir():
        for name in (path.name, f"{path.name}.tmp", f"{path.name}.tmp.tmp"):
            if name != "index.json":  # which is refused by name
                (kept / name).symlink_to(outside / name)
    assert firsts(prep(data)) == [11] * 30
    assert not list(outside.iterdir())
