"""Bytes of the scored tokens: exact for byte-level tokenizers, scaled to the text where a tokenizer changes it."""

import json

import numpy as np
import pytest

from zoo.data.packing import Counts
from zoo.data.token_bytes import keeps_text, sizes_of_tokens, token_bytes
from zoo.data.tokenizers import Bytes, Subwords

BPE = {"kind": "bpe", "vocab_size": 400}
TEXT = "naïve Größe\n 注意 <0x41> token window 🦓"


def metaspace(tmp_path, prefix=True):
    """A tokenizer as SentencePiece's: spaces as a letter of their own, rare characters as bytes, one space in front."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    bytes_of = {f"<0x{i:02X}>": 2 + i for i in range(256)}
    letters = {c: 258 + i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    pairs = ["to", "win", "▁t", "▁to"]
    vocabulary = {"<unk>": 0, "</s>": 1, **bytes_of, **letters, "▁": 284, **{p: 285 + i for i, p in enumerate(pairs)}}
    merges = [("t", "o"), ("▁", "t"), ("▁", "to")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    steps = [normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return Subwords(tokenizer.to_str(), "</s>")


def test_the_bytes_of_a_text_are_those_of_its_tokens(prep, of_text, tmp_path):
    learnt = prep(of_text(tokenizer=BPE), vocab_size=400).tokenizer
    for tokenizer, in_front in (
        (Bytes(), 0),
        (learnt, 0),
        (metaspace(tmp_path, prefix=False), 0),
        (metaspace(tmp_path), 1),
    ):
        sizes = sizes_of_tokens(tokenizer)
        assert sizes[tokenizer.end_of_document] == 1
        assert sizes[tokenizer.encode(TEXT)].sum() == len(TEXT.encode()) + in_front
    assert keeps_text(learnt)
    assert not keeps_text(metaspace(tmp_path))


@pytest.mark.parametrize("lower", [True, False])
def test_a_tokenizer_that_changes_the_text_is_scaled_to_its_bytes(prep, of_text, tmp_path, lower):
    folder = tmp_path / "tok"
    folder.mkdir()
    tokenizer = metaspace(tmp_path)
    if lower:
        content = json.loads(tokenizer.text)
        content["normalizer"]["normalizers"].insert(0, {"type": "StripAccents"})
        content["normalizer"]["normalizers"].insert(0, {"type": "NFD"})
        tokenizer = Subwords(json.dumps(content), "</s>")
    tokenizer.save(folder)
    prepared = prep(of_text(tokenizer={"kind": "huggingface", "path": str(folder)}))
    table = token_bytes(prepared, "validation", 1000)
    assert len(table) == 1000
    rows = rows_of(prepared, "validation")
    scored = sum(table[row[1:]].sum() for row in rows)
    assert scored == pytest.approx(prepared.counts("validation").bytes, rel=1e-12)
    assert table[prepared.tokenizer.encode("win")].sum() != 3


def rows_of(prepared, split):
    from streaming.base.format import reader_from_json

    from zoo.data.shards import make_ready, read_index

    found = []
    for stream in prepared.streams[split]:
        make_ready(stream.folder, "")
        for shard in read_index(stream.folder):
            reader = reader_from_json(str(stream.folder), "", shard)
            found += [reader[i]["tokens"] for i in range(len(reader))]
    return found


def test_rows_that_are_not_text_have_no_bytes(prep):
    data = {"source": {"kind": "synthetic", "task": "mqar", "vocab_size": 64, "rows": 20, "validation_rows": 8}}
    assert token_bytes(prep(data), "validation", 1000) is None


def test_bytes_of_a_byte_model_are_one_each(prep, of_text):
    table = token_bytes(prep(of_text()), "validation", 300)
    assert np.array_equal(table[:257], np.ones(257))
    assert not table[257:].any()
    assert Counts(bytes=4, tokens=2).bytes_per_token == 2
