import pytest

from zoo.data import DataError
from zoo.data.shards import make_ready, read_index, remove_broken


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
    with pytest.raises(DataError, match=r"index\.json: (no such file|not the index)"):
        make_ready(folder, "remedy")


def test_broken_copies_of_remote_shards_are_removed(folder):
    flip(zipped(folder, 1))
    remove_broken(folder)
    assert not zipped(folder, 1).exists()
    assert zipped(folder, 2).exists()
