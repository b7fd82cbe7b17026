import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.data import DataError, loader
from zoo.data.shards import read_index

IGNORED = -100


def batches(prepared, split="train", *, batch_size=4, shuffle=False, seed=3, **settings) -> list[dict]:
    return list(loader(prepared, split, batch_size=batch_size, shuffle=shuffle, seed=seed, **settings).dataloader)


def rows(all_batches: list[dict]) -> list[tuple]:
    return [tuple(row.tolist()) for batch in all_batches for row in batch["input_ids"]]


def shares(data_batches) -> np.ndarray:
    """Share of rows that come from the source of a's and from that of b's."""
    found = [[ord(letter) in row for letter in "ab"] for row in rows(data_batches)]
    assert all(sum(row) == 1 for row in found)
    return np.mean(found, axis=0)


@pytest.fixture
def two_alphabets(tmp_path):
    for letter, n in (("a", 60), ("b", 60)):
        (tmp_path / letter).mkdir()
        for i in range(n):
            (tmp_path / letter / f"{i}.txt").write_text(letter * (100 + i))
    return [{"kind": "text", "paths": [str(tmp_path / letter)]} for letter in "ab"]


def test_batches_keep_the_contract(prep, of_text):
    data = of_text()
    for batch in batches(prep(data)):
        assert {k: (v.dtype, tuple(v.shape)) for k, v in batch.items()} == {
            "input_ids": (torch.int64, (4, 32)),
            "labels": (torch.int64, (4, 32)),
            "document_starts": (torch.bool, (4, 32)),
        }
        inputs, labels, starts = batch["input_ids"], batch["labels"], batch["document_starts"]
        assert starts[:, 0].all()
        known = labels[:, :-1] != IGNORED
        torch.testing.assert_close(labels[:, :-1][known], inputs[:, 1:][known])
        full = (labels != IGNORED).all(dim=1)
        torch.testing.assert_close(starts[full][:, 1:], inputs[full][:, :-1] == 256)


def test_all_rows_come_once_an_epoch_and_shuffled_is_another_order(prep, of_text):
    prepared = prep(of_text(), piece_bytes=2000)
    plain, mixed = rows(batches(prepared, batch_size=1)), rows(batches(prepared, batch_size=1, shuffle=True))
    assert len(plain) == prepared.rows("train")
    assert plain != mixed
    assert sorted(plain) == sorted(mixed)


def test_same_seed_same_order(prep, of_text):
    prepared = prep(of_text())
    assert rows(batches(prepared, shuffle=True)) == rows(batches(prepared, shuffle=True))
    assert rows(batches(prepared, shuffle=True)) != rows(batches(prepared, shuffle=True, seed=4))


def test_the_end_of_a_document_is_trained_to_begin_the_next(prep, of_text):
    """Also where the next document lies in the next row."""
    prepared = prep(of_text())
    inputs, labels = (torch.cat([batch[name] for batch in batches(prepared)]) for name in ("input_ids", "labels"))
    ends = (inputs == 256) & (labels != IGNORED)
    assert ends[:, -1].any()
    assert (labels[ends] < 256).all()
    assert int(ends.sum()) == prepared.counts("train").documents - 1, "each but the last one of the piece"


def test_the_last_row_of_a_piece_is_padded(prep, of_text):
    prepared = prep(of_text())
    last = batches(prepared, batch_size=1)[-1]
    tokens = prepared.counts("train").tokens
    n = (tokens - 1) % 32
    assert n, "the corpus should not fill its last row"
    assert (last["labels"][0, :n] != IGNORED).all()
    assert (last["labels"][0, n:] == IGNORED).all()
    assert last["document_starts"][0, n]
    assert (last["input_ids"][0, n:] == 256).all()


def test_targets_of_an_epoch_are_all_tokens_but_the_first(prep, of_text):
    prepared = prep(of_text())
    n = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches(prepared, batch_size=1))
    assert n == prepared.counts("train").tokens - 1


def test_validation_is_mixed_fixed_and_complete(prep, of_text):
    prepared = prep(of_text(), piece_bytes=2000)
    spec = loader(prepared, "validation", batch_size=3, shuffle=False, seed=1)
    first, again = rows(spec.dataloader), rows(spec.dataloader)
    assert first == again == rows(batches(prepared, "validation", batch_size=5, seed=9))
    assert len(first) == prepared.rows("validation")
    stored = [
        tuple(spec.dataloader.dataset[int(i)]["input_ids"].tolist()) for i in np.argsort(spec.dataloader.dataset._order)
    ]
    assert first != stored
    assert sorted(first) == sorted(stored)


def test_composer_counts_rows_and_tokens(prep, of_text):
    spec = loader(prep(of_text()), "train", batch_size=4, shuffle=False, seed=0)
    batch = next(iter(spec.dataloader))
    assert spec.get_num_samples_in_batch(batch) == 4
    assert spec.get_num_tokens_in_batch(batch) == 4 * 32


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_resume_in_the_middle_of_an_epoch(prep, of_text, num_workers):
    prepared = prep(of_text(), piece_bytes=2000)
    settings = {"batch_size": 4, "shuffle": True, "seed": 5, "num_workers": num_workers}
    straight = loader(prepared, "train", **settings).dataloader
    epochs = [rows(straight), rows(straight)]
    assert epochs[0] != epochs[1]
    state = straight.dataset.state_dict(num_samples=12, from_beginning=True)
    resumed = loader(prepared, "train", **settings).dataloader
    resumed.dataset.load_state_dict(state)
    assert rows(resumed) == epochs[1][12:]


def test_mixture_keeps_its_proportions(prep, two_alphabets):
    sources = [s | {"proportion": p} for s, p in zip(two_alphabets, (3, 1), strict=True)]
    data = {"sources": sources, "validation_fraction": 0.1}
    prepared = prep(data)
    share = shares(batches(prepared, batch_size=1, shuffle=True))
    np.testing.assert_allclose(share, [0.75, 0.25], atol=0.01)


def test_mixture_without_proportions_goes_by_size(prep, two_alphabets):
    prepared = prep({"sources": two_alphabets, "validation_fraction": 0.1})
    sizes = np.array([s.counts.rows for s in prepared.streams["train"]])
    share = shares(batches(prepared, batch_size=1))
    np.testing.assert_allclose(share, sizes / sizes.sum())


def test_proportions_change_the_key_but_not_the_shards(prep, two_alphabets):
    def with_shares(*shares):
        sources = [s | {"proportion": p} for s, p in zip(two_alphabets, shares, strict=True)]
        return prep({"sources": sources, "validation_fraction": 0.1})

    first, second = with_shares(3, 1), with_shares(1, 1)
    assert first.key != second.key
    assert [s.folder for s in first.streams["train"]] == [s.folder for s in second.streams["train"]]
    assert second.seconds == 0.0


def most_documents(data: list[dict]) -> int:
    return max(batch["document_starts"].sum(1).max().item() for batch in data)


def test_most_documents_of_a_row_are_known(prep, two_alphabets, tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "w.txt").write_text("\n".join(f"w{i}" for i in range(300)))
    words = {"kind": "text", "paths": [str(tmp_path / "words")], "separator": "\n"}
    for sources in (two_alphabets, [*two_alphabets, words]):
        prepared = prep({"sources": sources, "validation_fraction": 0.2}, piece_bytes=2000)
        found = [most_documents(batches(prepared, split, batch_size=1)) for split in ("train", "validation")]
        assert prepared.max_documents == max(found)


def test_text_and_synthetic_rows_in_one_mixture(prep, of_text, corpus):
    copy = {"kind": "synthetic", "task": "copy", "vocab_size": 50, "length": 16, "rows": 30, "validation_rows": 5}
    text = {"kind": "text", "paths": [str(corpus)]}
    prepared = prep({"sources": [text, copy], "validation_fraction": 0.2})
    short = [
        b
        for b in batches(prepared, batch_size=1)
        if (b["labels"][0, 16:] == IGNORED).all() and b["input_ids"][0, :16].max() < 50
    ]
    assert len(short) == 30
    assert prepared.bytes_per_token["validation"] is None


def test_synthetic_rows_reach_the_model_as_made(prep):
    source = {"kind": "synthetic", "task": "mqar", "vocab_size": 100, "pairs": 4, "rows": 20, "validation_rows": 5}
    prepared = prep({"source": source})
    for batch in batches(prepared, batch_size=4):
        assert ((batch["labels"] != IGNORED).sum(dim=1) == 4).all()
        for inputs, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            pairs = dict(zip(inputs[0:8:2].tolist(), inputs[1:8:2].tolist(), strict=True))
            at = labels != IGNORED
            assert dict(zip(inputs[at].tolist(), labels[at].tolist(), strict=True)) == pairs


def test_a_synthetic_row_and_its_padding_are_two_documents(prep):
    copy = {"kind": "synthetic", "task": "copy", "vocab_size": 50, "length": 16, "rows": 8, "validation_rows": 2}
    prepared = prep({"source": copy})
    assert prepared.max_documents == most_documents(batches(prepared)) == 2


def test_fewer_rows_than_a_batch(prep, of_text):
    prepared = prep(of_text())
    n = prepared.rows("train")
    with pytest.raises(DataError, match=rf"{n} training rows of 32 tokens are less than one batch \({n + 1} rows\)"):
        loader(prepared, "train", batch_size=n + 1, shuffle=False, seed=0)


def test_no_validation_rows_to_load(prep, of_text):
    with pytest.raises(DataError, match=r"no validation rows \(validation_fraction = 0"):
        loader(prep(of_text(validation_fraction=0)), "validation", batch_size=1, shuffle=False, seed=0)


def test_damaged_shard_is_found_before_training(prep, of_text):
    prepared = prep(of_text())
    folder = prepared.streams["train"][0].folder
    shard = folder / read_index(folder)[0]["zip_data"]["basename"]
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(
        DataError, match=rf"this shard is damaged: .*; remove the folder {folder.parent} and prepare again"
    ):
        loader(prepared, "train", batch_size=1, shuffle=False, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_shard_that_vanishes_during_training_does_not_hang(prep, of_text, num_workers):
    prepared = prep(of_text(), piece_bytes=2000)
    data = loader(prepared, "train", batch_size=1, shuffle=True, seed=0, num_workers=num_workers).dataloader
    folder = prepared.streams["train"][0].folder
    shard = read_index(folder)[2]
    for info in (shard["raw_data"], shard["zip_data"]):
        (folder / info["basename"]).unlink()
    with pytest.raises(DataError, match=r"(a shard|row \d+) cannot be read"):
        list(data)


TWO_RANKS = """
import json, sys
from zoo.data import loader, prepare
from zoo.data.config import DataConfig
from composer.utils import dist
import torch
torch.distributed.init_process_group("gloo")
data = DataConfig.model_validate(json.loads(sys.argv[1]))
prepared = prepare(data, max_seq_len=32, vocab_size=1000, seed=17, cache_dir=sys.argv[2], quiet=True)
spec = loader(prepared, "train", batch_size=2, shuffle=True, seed=3)
found = [row.tolist() for batch in spec.dataloader for row in batch["input_ids"]]
json.dump(found, open(f"{sys.argv[2]}/rank{dist.get_global_rank()}.json", "w"))
torch.distributed.destroy_process_group()
"""


@pytest.mark.long
@pytest.mark.slow
def test_two_devices_see_the_batches_of_one(prep, of_text, tmp_path):
    import json
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
    }
    (tmp_path / "cache").mkdir()
    command = [sys.executable, "-c", TWO_RANKS, json.dumps(of_text()), str(tmp_path / "cache")]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    halves = [json.loads(Path(tmp_path, "cache", f"rank{r}.json").read_text()) for r in range(2)]
    whole = batches(prep(of_text()), batch_size=4, shuffle=True)
    together = [set(map(tuple, halves[0][i : i + 2] + halves[1][i : i + 2])) for i in range(0, len(halves[0]), 2)]
    assert together == [set(rows([batch])) for batch in whole][: len(together)]


@pytest.mark.slow
def test_a_closed_dataset_lets_go_of_its_shared_memory(prep, of_text):
    def segments():
        return sorted(path.name for path in Path("/dev/shm").iterdir() if path.name[:6].isdigit())

    def open_files():
        links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
        return sum("/dev/shm" in os.readlink(link) for link in links if link.is_symlink())

    gc.collect()  # what earlier tests left would be let go of at any moment
    other = loader(prep(of_text()), "train", batch_size=2, shuffle=True, seed=1)  # is looked at, and let go of again
    before, files = segments(), open_files()
    spec = loader(prep(of_text()), "train", batch_size=2, shuffle=True, seed=1)
    assert segments() != before
    spec.dataloader.dataset.close()
    assert (segments(), open_files()) == (before, files)
    other.dataloader.dataset.close()


@pytest.mark.slow
def test_a_temporary_folder_too_deep_for_sockets_is_refused(prep, of_text, tmp_path, monkeypatch):
    """Else the processes that read rows die, and training waits for them for ever."""
    prepared, deep = prep(of_text()), tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(DataError, match=r"must be at most 75 bytes for the sockets .*; found .*deep.*TMPDIR"):
        loader(prepared, "train", batch_size=4, shuffle=False, seed=0, num_workers=1)
    loader(prepared, "train", batch_size=4, shuffle=False, seed=0)


def first_share(found) -> tuple[float, int]:
    """Share of the first source's tokens among both, and rows."""
    tokens = torch.cat([batch["input_ids"] for batch in found])
    counts = [(tokens == ord(letter)).sum().item() for letter in "az"]
    return counts[0] / sum(counts), len(tokens)


def mixture(tmp_path, *proportions) -> dict:
    sources = []
    for letter, n, proportion in zip("az", (200, 2000), proportions, strict=True):
        path = tmp_path / f"{letter}.txt"
        path.write_text("\n\n".join(letter * (50 + i % 97) + str(i) for i in range(n)))
        sources.append({"kind": "text", "paths": [str(path)], "separator": "\n\n", "proportion": proportion})
    return {"validation_fraction": 0.1, "sources": sources}


@pytest.mark.parametrize("proportions", [(9, 1), (1, 3), (0.02, 0.02)])
def test_validation_is_the_mixture_of_training(prep, tmp_path, proportions):
    prepared = prep(mixture(tmp_path, *proportions))
    wanted = proportions[0] / sum(proportions)
    rows = [stream.counts.rows for stream in prepared.streams["validation"]]
    first = batches(prepared, "validation")
    share, n = first_share(first)
    assert share == pytest.approx(wanted, abs=0.06)
    assert n == pytest.approx(min(rows[0] / wanted, rows[1] / (1 - wanted)), abs=1), "as many rows as there are"
    again = batches(prepared, "validation", seed=8)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    half, _ = first_share(first[: len(first) // 2])
    assert half == pytest.approx(wanted, abs=0.15), "a run that reads some batches reads the mixture too"
    assert "validation in the proportions of training: " in prepared.report


def test_validation_without_proportions_is_all_that_was_held_out(prep, tmp_path):
    prepared = prep(mixture(tmp_path, None, None))
    assert first_share(batches(prepared, "validation"))[1] == prepared.rows("validation")
    assert "in the proportions" not in prepared.report


def test_a_rare_source_keeps_a_row_of_validation(prep, tmp_path):
    prepared = prep(mixture(tmp_path, 1e-6, 1))
    assert prepared.streams["validation"][0].choose == 1


def test_validation_rows_stay_the_same_each_time(prep, tmp_path):
    """Streaming would draw other rows of a source in each epoch."""
    spec = loader(prep(mixture(tmp_path, 9, 1)), "validation", batch_size=4, shuffle=False, seed=3)
    first, second = ([batch["input_ids"] for batch in spec.dataloader] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    spec.dataloader.dataset.close()
