"""Ready shards: other people's, and remote."""

import shutil

import numpy as np
import pytest
import torch

from zoo.data import DataError, loader
from zoo.data.config import DataConfig
from zoo.data.mds import token_numbers

# Streaming 0.13 reads what it has fetched with open(...).read(), and leaves closing to the garbage collector.
unclosed_by_streaming = pytest.mark.filterwarnings(
    "ignore:unclosed file.*shard:ResourceWarning",
    "ignore:Exception ignored in.*FileIO.*shard:pytest.PytestUnraisableExceptionWarning",
)


def write_mds(folder, rows, columns, **settings):
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 12, **settings) as writer:
        for row in rows:
            writer.write(row)
    return folder


def numbers(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 900, n)


@pytest.fixture
def foreign(tmp_path):
    """30 rows of 33 tokens as LLM Foundry writes them: int64 as plain bytes; 7 ends a document."""
    rows = []
    for i in range(30):
        tokens = numbers(33, i)
        tokens[10] = 7
        rows.append({"tokens": tokens.tobytes()})
    return write_mds(tmp_path / "foreign", rows, {"tokens": "bytes"}, compression="zstd", hashes=["sha1", "xxh64"])


def mds(**settings) -> dict:
    return {"source": {"kind": "mds", **settings}, "validation_fraction": 0}


def batches(prepared, split="train", **settings):
    settings = {"batch_size": 1, "shuffle": False, "seed": 0} | settings
    return list(loader(prepared, split, **settings).dataloader)


def test_plain_bytes_with_documents(prep, foreign):
    prepared = prep(mds(local=str(foreign), end_of_document=7))
    assert prepared.rows("train") == 30
    assert prepared.max_documents is None, "only reading every row would tell"
    assert prep(mds(local=str(foreign))).max_documents == 2
    for i, batch in enumerate(batches(prepared)):
        tokens = numbers(33, i)
        tokens[10] = 7
        np.testing.assert_array_equal(batch["input_ids"][0], tokens[:-1])
        np.testing.assert_array_equal(batch["labels"][0], tokens[1:])
        assert batch["document_starts"][0].nonzero().flatten().tolist() == sorted(
            {0, *(np.flatnonzero(tokens[:-2] == 7) + 1)}
        )


def test_rows_of_seq_len_have_no_last_target(prep, tmp_path):
    rows = [{"ids": numbers(32, i).astype(np.uint16)} for i in range(8)]
    folder = write_mds(tmp_path / "short", rows, {"ids": "ndarray:uint16"})
    batch = batches(prep(mds(local=str(folder), tokens_column="ids")))[0]
    np.testing.assert_array_equal(batch["input_ids"][0], rows[0]["ids"])
    np.testing.assert_array_equal(batch["labels"][0], [*rows[0]["ids"][1:], -100])


SHORT = {
    "plain bytes": ({"x": "bytes"}, lambda ids: {"x": ids.tobytes()}, {}),
    "arrays beside other columns": (
        {"name": "str", "count": "int", "x": "ndarray:int64"},
        lambda ids: {"name": "n" * len(ids), "count": 3, "x": ids},
        {},
    ),
    "arrays with labels": (
        {"x": "ndarray:int64", "y": "ndarray:int64"}, lambda ids: {"x": ids, "y": ids}, {"labels_column": "y"}
    ),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "row", "settings"), SHORT.values(), ids=SHORT)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_rows_that_padding_fills_are_counted_and_told_of_once(
    prep, tmp_path, capsys, columns, row, settings, compression
):
    """Rows in several shards, of which one in five has fewer tokens than seq_len."""
    lengths = [33 if i % 5 else 1 + i % 31 for i in range(100)]
    rows = [row(numbers(length, i)) for i, length in enumerate([33, *lengths])]
    folder = write_mds(tmp_path / "short", rows, columns, compression=compression)
    prepared = prep(mds(local=str(folder), tokens_column="x", **settings))
    found = batches(prepared)
    padded = sum(int((batch["labels"] == -100).sum()) for batch in found)
    assert len(list((tmp_path / "short").glob("shard*.mds"))) > 2
    told = [line for line in capsys.readouterr().err.splitlines() if "rows have fewer" in line]
    assert told == [
        f"source mds: {folder}: 20 of 101 rows have fewer than 32 tokens: {padded:,} of {101 * 32:,} places are "
        "padding, which is not trained on"
    ]


def test_of_rows_that_are_long_enough_nothing_is_told(prep, foreign, capsys):
    batches(prep(mds(local=str(foreign))))
    assert "rows have fewer" not in capsys.readouterr().err


def test_a_shard_whose_rows_lie_elsewhere_is_named(prep, tmp_path):
    rows = [{"x": numbers(33, i).tobytes()} for i in range(8)]
    prepared = prep(mds(local=str(write_mds(tmp_path / "rows", rows, {"x": "bytes"})), tokens_column="x"))
    path = tmp_path / "rows" / "shard.00000.mds"
    data = bytearray(path.read_bytes())
    data[4 + 4 * 3 : 4 + 4 * 4] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"shard\.00000\.mds: not the rows that its index states: index 1073741824"):
        batches(prepared)


def test_stated_labels(prep, tmp_path):
    rows = [{"x": numbers(32, i), "y": np.where(numbers(32, i) % 2, numbers(32, 99), -100)} for i in range(8)]
    folder = write_mds(tmp_path / "labelled", rows, {"x": "ndarray:int64", "y": "ndarray:int64"})
    for row, batch in zip(
        rows, batches(prep(mds(local=str(folder), tokens_column="x", labels_column="y"))), strict=True
    ):
        np.testing.assert_array_equal(batch["input_ids"][0], row["x"])
        np.testing.assert_array_equal(batch["labels"][0], row["y"])


def test_our_own_shards_again(prep, of_text):
    first = prep(of_text())
    again = {
        "source": {"kind": "mds", "local": str(first.streams["train"][0].folder)},
        "validation_source": {"kind": "mds", "local": str(first.streams["validation"][0].folder)},
        "tokenizer": {"kind": "byte"},
    }
    second = prep(again, cache="other")
    for split in ("train", "validation"):
        for a, b in zip(batches(first, split), batches(second, split), strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
    assert second.bytes_per_token["validation"] == pytest.approx(1.0, abs=0.02)


@unclosed_by_streaming
def test_remote_shards_are_fetched_and_kept(prep, foreign, tmp_path):
    remote = tmp_path / "remote" / "part"
    shutil.copytree(foreign, remote)
    data = mds(remote=str(remote.parent), split="part", local=str(tmp_path / "kept"))
    there = batches(prep(mds(local=str(foreign))))
    fetched = batches(prep(data))
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(there, fetched, strict=True))
    assert (tmp_path / "kept" / "part" / "index.json").is_file()


@unclosed_by_streaming
@pytest.mark.timeout(60)
def test_a_remote_shard_that_is_missing_does_not_hang(prep, foreign, tmp_path):
    remote = tmp_path / "remote"
    shutil.copytree(foreign, remote)
    next(remote.glob("shard.00001*")).unlink()
    with pytest.raises(DataError, match="a shard cannot be read"):
        batches(prep(mds(remote=str(remote))))


@unclosed_by_streaming
def test_a_remote_shard_that_is_damaged(prep, foreign, tmp_path):
    remote = tmp_path / "remote"
    shutil.copytree(foreign, remote)
    shard = next(remote.glob("shard.00001*"))
    shard.write_bytes(shard.read_bytes()[:-5] + b"wrong")
    with pytest.raises(
        DataError, match=r"a shard cannot be read: .*shard\.00001\.mds\.zstd: this shard is damaged: sha1"
    ):
        batches(prep(mds(remote=str(remote))))


def test_no_such_column(prep, foreign):
    with pytest.raises(DataError, match="no column 'ids'; it has tokens"):
        prep(mds(local=str(foreign), tokens_column="ids"))


def test_rows_too_short(prep, tmp_path):
    folder = write_mds(tmp_path / "a", [{"tokens": numbers(16)}], {"tokens": "ndarray:int64"})
    with pytest.raises(DataError, match="rows of 16 tokens; seq_len = 32 needs as many"):
        prep(mds(local=str(folder)))


def test_tokens_outside_the_vocabulary(prep, tmp_path):
    folder = write_mds(tmp_path / "a", [{"tokens": numbers(40) + 500}], {"tokens": "ndarray:int64"})
    with pytest.raises(DataError, match=r"token 1\d\d\d in a row; model\.vocab_size = 1000"):
        prep(mds(local=str(folder)))


def test_tokens_outside_the_vocabulary_in_a_later_shard(prep, tmp_path):
    rows = [{"tokens": numbers(33, i) + (500 if i == 99 else 0)} for i in range(100)]
    folder = write_mds(tmp_path / "a", rows, {"tokens": "ndarray:int64"})
    with pytest.raises(DataError, match=r"token 1\d\d\d in a row"):
        batches(prep(mds(local=str(folder))))


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_pickled_columns_are_refused_unread(prep, tmp_path, capfd):
    folder = write_mds(tmp_path / "a", [{"tokens": Evil()}], {"tokens": "pkl"})
    with pytest.raises(DataError, match="found 'pkl' \\(an unsafe type"):
        prep(mds(local=str(folder)))
    assert "executed" not in capfd.readouterr().out


def test_no_such_folder(prep, tmp_path):
    with pytest.raises(DataError, match=r"index\.json: no such file"):
        prep(mds(local=str(tmp_path / "absent")))
    with pytest.raises(DataError, match=r"absent/index\.json: no such file"):
        prep(mds(remote=str(tmp_path / "absent")))


@pytest.mark.parametrize("stated", ["uint16", "uint32", "int32", "int64"])
@pytest.mark.parametrize("written", ["uint16", "uint32", "int32", "int64"])
@pytest.mark.parametrize("length", [32, 33])
def test_plain_bytes_of_another_type_are_refused(prep, tmp_path, stated, written, length):
    from streaming import MDSWriter

    rows = np.random.default_rng(1).integers(1, 250, (20, length))
    with MDSWriter(out=str(tmp_path / "m"), columns={"tokens": "bytes"}) as writer:
        for row in rows:
            writer.write({"tokens": row.astype(written).tobytes()})
    data = {
        "source": {"kind": "mds", "local": str(tmp_path / "m"), "bytes_dtype": stated},
        "validation_fraction": 0,
    }
    same = {stated, written} in ({"uint32", "int32"}, {stated})
    if same:
        assert prep(data).rows("train") == 20
        return
    with pytest.raises(DataError, match=rf"row 0: its \d+ bytes are not token numbers of type {stated} .*{written}"):
        prep(data)


def test_a_later_row_of_another_length_is_an_error_of_one_line():
    source = DataConfig.model_validate({"source": {"kind": "mds", "local": "m"}}).source
    with pytest.raises(DataError, match=r"source mds: m: a row of 30 bytes is no whole number of int64; set bytes_d"):
        token_numbers(source, b"x" * 30)
