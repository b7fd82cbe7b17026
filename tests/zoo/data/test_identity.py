"""Records of prepared data: equal for equal content, and naming what differs."""

import json
import os
import shutil
from pathlib import Path

import pytest

from zoo.data.identity import DataRecord, _hash_of_file, describe, tokenizer_record
from zoo.data.tokenizers import Subwords
from zoo.files import FileError

RUN = Path("runs/mine")
BPE = {"kind": "bpe", "vocab_size": 300}


def told(now: DataRecord, before: DataRecord) -> list[str]:
    return [str(problem) for problem in now.differences(before, RUN)]


def write_jsonl(path: Path, texts) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_copied_and_touched_files_are_the_same_data(prep, of_text, corpus, tmp_path):
    data = of_text(tokenizer=BPE)
    before = DataRecord.of(prep(data))
    shutil.copytree(corpus, tmp_path / "elsewhere")
    for path in corpus.iterdir():
        os.utime(path, (2e9, 2e9))
    moved = {**data, "source": {"kind": "text", "paths": [str(tmp_path / "elsewhere")]}}
    for other in (prep(data), prep(data, cache="another"), prep(moved)):
        assert told(DataRecord.of(other), before) == []


def test_a_changed_file_is_named_with_its_sizes(prep, of_text, corpus):
    data = of_text()
    before = DataRecord.of(prep(data))
    (corpus / "more.txt").write_text("one more document")
    found = told(DataRecord.of(prep(data)), before)
    assert len(found) == 1
    assert found[0].startswith("data.source: text ")  # a long path is shortened
    assert ": not the data that runs/mine was trained on: " in found[0]
    assert " documents, " in found[0]
    assert " then, " in found[0]


def test_text_of_the_same_size_is_told_apart(prep, of_text, corpus):
    data = of_text(validation_fraction=0)
    before = DataRecord.of(prep(data))
    path = corpus / "07.txt"
    path.write_text(path.read_text().swapcase())
    os.utime(path, (2e9, 2e9))
    (found,) = told(DataRecord.of(prep(data)), before)
    assert "training: other content in 40 documents" in found


def test_each_source_of_a_mixture_and_the_validation_source_are_named(prep, tmp_path):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("a", "b", "held")}
    for name, path in files.items():
        write_jsonl(path, [f"text {i} of {name}, some words long" for i in range(30)])
    data = {
        "sources": [{"kind": "jsonl", "paths": [str(files["a"])]}, {"kind": "jsonl", "paths": [str(files["b"])]}],
        "validation_source": {"kind": "jsonl", "paths": [str(files["held"])]},
    }
    before = DataRecord.of(prep(data))
    for name in ("b", "held"):
        write_jsonl(files[name], [f"TEXT {i} of {name}, some words long" for i in range(31)])
    found = told(DataRecord.of(prep(data)), before)
    assert [line.split(":")[0] for line in found] == ["data.sources[1]", "data.validation_source"]
    assert "validation: 30 documents" in found[1]


def test_a_tokenizer_learnt_anew_from_more_text_is_named(prep, of_text, corpus):
    data = of_text(tokenizer=BPE)
    before = DataRecord.of(prep(data))
    for i in range(20):
        (corpus / f"more{i}.txt").write_text("quixotic zebras vex my quick jumpy fox " * (9 + i))
    found = told(DataRecord.of(prep(data)), before)
    assert [line.split(": ")[0] for line in found] == ["data.tokenizer", "data.source"]
    assert "other vocabulary, merges; it was learnt anew from other text" in found[0]


def test_another_tokenizer_over_the_same_text_is_one_line(prep, of_text, tmp_path):
    learnt = prep(of_text(tokenizer=BPE)).tokenizer
    folder = tmp_path / "tok"
    folder.mkdir()
    learnt.save(folder)
    data = of_text(tokenizer={"kind": "huggingface", "path": str(folder)})
    before = DataRecord.of(prep(data))
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (found,) = told(DataRecord.of(prep(data)), before)
    assert found == (
        "data.tokenizer: not the huggingface tokenizer that runs/mine was trained with: other vocabulary; "
        "its file was replaced."
    )


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda content: content["added_tokens"][0].update(lstrip=True), "special tokens"),
        (lambda content: content["pre_tokenizer"].update(use_regex=False), "text splitting"),
        (lambda content: content["model"]["merges"].pop(), "merges"),
        (
            lambda content: content.update(
                post_processor={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
            ),
            "template",
        ),
    ],
)
def test_every_part_of_a_tokenizer_counts_and_its_spelling_does_not(prep, of_text, change, part):
    tokenizer = prep(of_text(tokenizer=BPE)).tokenizer
    before = tokenizer_record("huggingface", tokenizer)
    content = json.loads(tokenizer.text)
    spelt = json.dumps(dict(reversed(content.items())), indent=4)
    assert tokenizer_record("huggingface", Subwords(spelt, tokenizer.end_of_document_text)) == before
    change(content)
    changed = tokenizer_record("huggingface", Subwords(json.dumps(content), tokenizer.end_of_document_text))
    assert part in changed.other_than(before)


def test_merges_of_older_files_are_the_same(prep, of_text):
    tokenizer = prep(of_text(tokenizer=BPE)).tokenizer
    content = json.loads(tokenizer.text)
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    other = Subwords(json.dumps(content), tokenizer.end_of_document_text)
    assert tokenizer_record("bpe", other).other_than(tokenizer_record("bpe", tokenizer)) == []


def test_shards_without_hashes_are_told_apart_by_their_bytes(prep, of_text, tmp_path):
    made = prep(of_text(validation_fraction=0)).streams["train"][0].folder
    folder = tmp_path / "ready"
    shutil.copytree(made, folder)
    index = json.loads((folder / "index.json").read_text())
    del index["checksum"]
    for shard in index["shards"]:
        for file in (shard["raw_data"], shard["zip_data"]):
            file["hashes"] = {}
    (folder / "index.json").write_text(json.dumps(index))
    data = {"source": {"kind": "mds", "local": str(folder)}, "validation_fraction": 0}
    prepared = prep(data)
    before = DataRecord.of(prepared)
    assert DataRecord.of(prepared).digest == before.digest
    file = folder / index["shards"][0]["zip_data"]["basename"]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "data.source: mds " in told(DataRecord.of(prepared), before)[0]


def test_untouched_files_are_known_without_preparing(prep, of_text, corpus):
    prepared = prep(of_text(tokenizer=BPE))
    record = DataRecord.of(prepared)
    assert record.is_of(prepared.config)
    os.utime(corpus / "00.txt", (2e9, 2e9))
    assert not record.is_of(prepared.config)


def test_the_same_text_with_another_tokenizer_or_length(prep, of_text, corpus):
    record = DataRecord.of(prep(of_text()))
    assert record.same_text(DataRecord.of(prep(of_text(tokenizer=BPE))))
    assert record.same_text(DataRecord.of(prep(of_text(), max_seq_len=16)))
    (corpus / "00.txt").write_text("other")
    assert not record.same_text(DataRecord.of(prep(of_text(tokenizer=BPE))))


def test_a_record_comes_back_and_later_keys_are_left_aside(prep, of_text, tmp_path):
    record, path = DataRecord.of(prep(of_text())), tmp_path / "data.json"
    path.write_text(json.dumps(json.loads(record.model_dump_json()) | {"later": 1}))
    assert DataRecord.read(path) == record


@pytest.mark.parametrize("content", ["{}", "[1]", "", '{"version": 3}', "\xff"])
def test_a_damaged_record_is_named(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(FileError, match=r"data\.json: (damaged|not UTF-8 text)"):
        DataRecord.read(path)


def test_sources_in_words():
    from zoo.data.config import DataConfig

    data = DataConfig.model_validate({"source": {"kind": "huggingface", "path": "org/name"}})
    assert describe(data.source) == "huggingface org/name (train)"
    assert describe(DataConfig().streams()[0]) == "python-stdlib"


def test_a_shard_that_is_a_fifo_is_not_waited_for(tmp_path):
    """Loading refuses it with its name; the record is made before."""
    os.mkfifo(tmp_path / "shard.00000.mds")
    assert _hash_of_file(tmp_path / "shard.00000.mds") is None
