import numpy as np
import pytest

from zoo.data import packing, tokenizers
from zoo.data.packing import count_words, held_out, pack
from zoo.data.sources import Texts
from zoo.data.tokenizers import Bytes

TEXTS = tuple(f"document {i} " * (i % 5 + 1) for i in range(30)) + ("",)


@pytest.mark.parametrize("seq_len", [1, 7, 64, 100_000])
def test_every_token_is_a_target_once_and_documents_come_back(seq_len, tmp_path):
    packed = pack(Texts(TEXTS), tmp_path, tokenizer=Bytes(), fraction=0.0)["train"]
    rows = list(packed.rows(seq_len))
    assert all(len(r["tokens"]) == seq_len + 1 for r in rows[:-1])
    targets = np.concatenate([r["tokens"][1:] for r in rows])
    np.testing.assert_array_equal(np.concatenate([rows[0]["tokens"][:1], targets]), packed.tokens)
    joined = b"".join(t.encode() + b"\0" for t in TEXTS if t)
    assert bytes(np.where(packed.tokens == 256, 0, packed.tokens).astype(np.uint8)) == joined


@pytest.mark.parametrize("seq_len", [1, 7, 64])
def test_starts_stand_after_each_end(seq_len, tmp_path):
    for row in pack(Texts(TEXTS), tmp_path, tokenizer=Bytes(), fraction=0.0)["train"].rows(seq_len):
        after_ends = np.flatnonzero(row["tokens"][:-1] == 256) + 1
        assert row["starts"].tolist() == [0, *after_ends]


def documents_of(row, seq_len: int) -> int:
    """Documents among the inputs of a row as the loader makes it: padding begins one."""
    inputs = row["tokens"][:-1]
    return 1 + (inputs[:-1] == 256).sum() + (len(inputs) < seq_len)


@pytest.mark.parametrize("seq_len", [1, 7, 20, 64, 977, 100_000])
def test_most_documents_of_a_row(seq_len, tmp_path):
    packed = pack(Texts(TEXTS), tmp_path, tokenizer=Bytes(), fraction=0.0)["train"]
    assert packed.max_documents(seq_len) == max(documents_of(row, seq_len) for row in packed.rows(seq_len))


def test_counts(tmp_path):
    packed = pack(Texts(TEXTS), tmp_path, tokenizer=Bytes(), fraction=0.4)
    kept = {
        "validation": [t for t in TEXTS if t and held_out(t, 0.4)],
        "train": [t for t in TEXTS if t and not held_out(t, 0.4)],
    }
    for split, texts in kept.items():
        assert texts
        counts = packed[split].counts
        assert counts.documents == len(texts)
        assert counts.bytes == counts.tokens == sum(len(t.encode()) + 1 for t in texts)
        assert counts.bytes_per_token == 1.0


def test_held_out_share_is_the_fraction():
    share = np.mean([held_out(f"text {i}", 0.1) for i in range(5000)])
    assert abs(share - 0.1) < 4 * np.sqrt(0.09 / 5000)
    assert not any(held_out(t, 0.0) for t in TEXTS)
    assert all(held_out(t, 1.0) for t in TEXTS)


def test_nothing_to_pack(tmp_path):
    packed = pack(Texts(("", "")), tmp_path, tokenizer=Bytes(), fraction=0.5)["train"]
    assert list(packed.rows(8)) == []
    assert packed.max_documents(8) == 0
    assert packed.counts.documents == 0


def test_counted_words_of_one_large_document_are_bounded(tmp_path, monkeypatch):
    """Words of numbers never repeat: their memory would grow with the document."""
    monkeypatch.setattr(packing, "PART_CHARACTERS", 1000)
    monkeypatch.setattr(packing, "COUNTED_BYTES", 2000)
    monkeypatch.setattr(tokenizers, "MOST_LEARNT_CHARACTERS", 5000)
    text = " ".join(map(str, range(100_000, 103_000))) + " 100000" * 10
    words, size = count_words(Texts((text,)), tmp_path, fraction=0.0, most=1e9)
    assert size == len(text)
    assert list(words)[:3] == ["100000", " 100001", " 100002"]
    assert 5000 <= sum(map(len, words)) < 5010
    assert words[" 100002"] == 1
    first = " 100000"
    assert first not in words, "seen first when there is no room"
    short, _ = count_words(Texts(("a b a b a", "c")), tmp_path, fraction=0.0, most=5)
    assert short == {"a": 1, " b": 2, " a": 2}
