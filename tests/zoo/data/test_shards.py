import json
import os
import re

import pytest
from streaming.base.compression import compress

from zoo.data import DataError
from zoo.data.build import read_counts
from zoo.data.shards import expand, make_ready, read_index, remove_broken


@pytest.fixture
def folder(prep, of_text):
    return prep(of_text(), piece_bytes=2000).streams["train"][0].folder


def zipped(folder, at=2):
    return folder / read_index(folder)[at]["zip_data"]["basename"]


def raw(folder, at=2):
    return folder / read_index(folder)[at]["raw_data"]["basename"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def test_good_shards_are_decompressed(folder):
    make_ready(folder, "remedy")
    assert all(raw(folder, i).is_file() for i in range(len(read_index(folder))))
    make_ready(folder, "remedy")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "is damaged: xxh64 .*expected"),
        (cut, "is damaged: .* bytes, .* expected"),
        (lambda p: p.unlink(), "is missing"),
    ],
    ids=["flip", "cut", "missing"],
)
def test_a_damaged_shard_is_named_with_the_way_out(folder, damage, message):
    damage(zipped(folder))
    with pytest.raises(
        DataError, match=rf"part-\d+/shard\.00000\.mds\.zstd: this shard {message}; remove the folder X"
    ):
        make_ready(folder, "remove the folder X")


@pytest.mark.parametrize("damage", [flip, cut], ids=["flip", "cut"])
def test_a_damaged_decompressed_copy_is_made_again(folder, damage):
    make_ready(folder, "remedy")
    good = raw(folder).read_bytes()
    damage(raw(folder))
    make_ready(folder, "remedy")
    assert raw(folder).read_bytes() == good


def test_compressed_file_gone_is_found_although_its_copy_is_there(folder):
    # Streaming would delete the copy, then wait for ever.
    make_ready(folder, "remedy")
    zipped(folder).unlink()
    with pytest.raises(DataError, match="this shard is missing"):
        make_ready(folder, "remedy")


@pytest.mark.parametrize("content", [None, "", "{}", '{"shards": [{}]}', "[1]"])
def test_a_broken_index(folder, content):
    (folder / "index.json").unlink()
    if content is not None:
        (folder / "index.json").write_text(content)
    with pytest.raises(DataError, match=r"index\.json: .*(no such file|not the index)"):
        make_ready(folder, "remedy")


def test_broken_copies_of_remote_shards_are_removed(folder):
    flip(zipped(folder, 1))
    remove_broken(folder)
    assert not zipped(folder, 1).exists()
    assert zipped(folder, 2).exists()


def test_a_folder_in_the_place_of_a_remote_shard_is_named(folder):
    zipped(folder, 1).unlink()
    zipped(folder, 1).mkdir()
    with pytest.raises(DataError, match=rf"{zipped(folder, 1).name}: must be a file; found a folder; remove it"):
        remove_broken(folder)


def index_of(folder) -> dict:
    return json.loads((folder / "index.json").read_text())


def rewrite(folder, change) -> None:
    """Change the index as somebody would who knows of no checksum."""
    index = index_of(folder)
    index.pop("checksum")
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def set_name(part, name):
    return lambda index: index["shards"][-1][part].update(basename=name)


@pytest.mark.parametrize("part", ["raw_data", "zip_data"])
@pytest.mark.parametrize("name", ["../victim", "/etc/victim", "a/../../victim", "", "a\0b", 3, "linked/victim"])
def test_names_outside_of_the_folder_are_refused_before_anything_is_touched(folder, part, name):
    victim = folder.parent / "victim"
    victim.write_text("precious")
    (folder / "linked").symlink_to(folder.parent)
    rewrite(folder, set_name(part, name))
    before = sorted(folder.rglob("*"))
    for use in (lambda: make_ready(folder, "remedy"), lambda: remove_broken(folder), lambda: read_index(folder)):
        with pytest.raises(DataError, match=rf"index\.json: not the index .*shards\[\d+\]\.{part}\.basename"):
            use()
    assert victim.read_text() == "precious"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("samples", 10**12, "samples: must fit into the"),
        ("samples", -1, "samples: .*greater than or equal to 0"),
        ("samples", "3", "samples: .*valid integer; found '3'"),
        ("column_encodings", ["pkl", "pkl"], ".*an unsafe type"),
        ("column_encodings", ["pkl:", "jpeg"], ".*an unsafe type"),
        ("column_encodings", ["ndarray:nothing", "ndarray:x"], ".*must be a type of MDS"),
        ("column_encodings", ["ndarray:uint16"], "column_names: must be as many as"),
        ("column_names", {"tokens": 1}, "column_names: .*valid list"),
        ("version", 3, "version: .*should be 2"),
        ("format", "csv", "format: .*should be 'mds'"),
        ("compression", None, "compression: must be stated with zip_data"),
        ("raw_data", None, "raw_data: .*found nothing"),
    ],
)
def test_what_an_index_may_say(folder, key, value, message):
    rewrite(folder, lambda index: index["shards"][0].update({key: value}))
    with pytest.raises(DataError, match=rf"index\.json: not the index of an MDS dataset: shards\[0\]\.{message}"):
        make_ready(folder, "remedy")


def test_two_files_of_one_name(folder):
    rewrite(folder, lambda index: index["shards"].append(index["shards"][0]))
    with pytest.raises(DataError, match="two files have the name"):
        make_ready(folder, "remedy")


def test_keys_of_a_later_version_are_left_out(folder):
    rewrite(folder, lambda index: index["shards"][0].update(later=1))
    make_ready(folder, "remedy")
    assert "later" not in read_index(folder)[0]


def test_a_flipped_digit_of_the_index_shows(folder):
    text = (folder / "index.json").read_text()
    digit = re.search(r'"samples": (\d)', text).start(1)
    (folder / "index.json").write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])
    assert text != (folder / "index.json").read_text()
    with pytest.raises(DataError, match=r"index\.json: damaged, its checksum does not match"):
        read_index(folder)


@pytest.mark.parametrize("compression", ["zstd", "zstd:9", "gz", "bz2", "br", "snappy"])
def test_a_shard_decompresses_to_no_more_than_its_index_says(tmp_path, compression):
    data = b"0123456789" * 100_000
    packed = tmp_path / "shard"
    packed.write_bytes(compress(compression, data))
    with open(tmp_path / "out", "wb") as file:
        expand(packed, compression, file, len(data))
    assert (tmp_path / "out").read_bytes() == data
    with (
        open(tmp_path / "out", "wb") as file,
        pytest.raises(DataError, match="decompresses to more bytes than its index says"),
    ):
        expand(packed, compression, file, len(data) - 1)
    assert (tmp_path / "out").stat().st_size < len(data)
    packed.write_bytes(b"no archive at all")
    with open(tmp_path / "out", "wb") as file, pytest.raises(DataError, match="shard: this shard is damaged"):
        expand(packed, compression, file, len(data))


def test_a_compression_that_is_not_known(tmp_path):
    (tmp_path / "shard").write_bytes(b"x")
    with open(tmp_path / "out", "wb") as file, pytest.raises(DataError, match="must be compressed with zstd, gz"):
        expand(tmp_path / "shard", "xz", file, 10)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_what_stands_in_the_place_of_a_shard(folder, make):
    zipped(folder).unlink()
    make(zipped(folder))
    with pytest.raises(DataError, match=r"shard\.00000\.mds\.zstd: .*; remedy"):
        make_ready(folder, "remedy")


def test_decompression_writes_through_no_link(folder):
    victim = folder.parent / "victim"
    victim.write_text("precious")
    raw(folder).symlink_to(victim)
    make_ready(folder, "remedy")
    assert victim.read_text() == "precious"
    assert not raw(folder).is_symlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "train: Field required"),
        ("[]", "must be a JSON object"),
        ('{"train": 1, "validation": 2}', "train: Input should be"),
        ('{"train": {"rows": -1}, "validation": {}}', "train.documents: Field required"),
        ("", "not JSON"),
    ],
)
def test_damaged_counts_are_named_with_the_way_out(folder, content, message):
    path = folder.parent / "counts.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"counts\.json: .*{message}.*; remove the folder .* and prepare again"):
        read_counts(path)


def test_a_flipped_digit_of_the_counts_shows(folder):
    path = folder.parent / "counts.json"
    assert read_counts(path)["train"].rows
    text = path.read_text()
    digit = re.search(r'"documents": (\d)', text).start(1)
    path.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])
    with pytest.raises(DataError, match="its checksum does not match; remove the folder"):
        read_counts(path)
