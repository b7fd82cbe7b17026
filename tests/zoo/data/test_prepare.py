import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zoo.data import DataError, prepare_command, preparing
from zoo.data.config import BpeTokenizer
from zoo.data.packing import held_out
from zoo.data.preparing import ABANDONED_S
from zoo.data.shards import make_ready, read_index
from zoo.data.sources import Texts
from zoo.data.tokenizers import train_bpe
from zoo.export.tokenizer_files import bytes_as_subwords
from zoo.recipe import load_recipe

ALL_SPLITS = ("train", "validation")


def contents(prepared) -> dict[str, list]:
    """The indexes, which hold size and hash of every shard."""
    return {split: [read_index(s.folder) for s in prepared.streams[split]] for split in ALL_SPLITS}


def stored_tokens(stream) -> list[list[int]]:
    from streaming.base.format import reader_from_json

    make_ready(stream.folder, "")
    readers = [reader_from_json(str(stream.folder), "", shard) for shard in read_index(stream.folder)]
    return [reader[i]["tokens"].tolist() for reader in readers for i in range(len(reader))]


def stored_text(stream, seq_len: int) -> bytes:
    """The rows of a stream made of one piece, joined again; the end of a document as a zero byte."""
    rows = stored_tokens(stream)
    joined = [*rows[0][:1], *(n for row in rows for n in row[1:])]
    return bytes(0 if n == 256 else n for n in joined)


def test_rows_hold_every_document_in_one_split(prep, of_text, corpus):
    prepared = prep(of_text())
    texts = [p.read_text(encoding="utf-8") for p in sorted(corpus.iterdir())]
    for split, held in (("train", False), ("validation", True)):
        (stream,) = prepared.streams[split]
        wanted = b"".join(t.encode() + b"\0" for t in texts if held_out(t, 0.2) == held)
        assert stored_text(stream, 32) == wanted
        assert stream.counts.bytes == stream.counts.tokens == len(wanted)
        assert prepared.rows(split) == len(stored_tokens(stream))
    assert prepared.bytes_per_token == {"train": 1.0, "validation": 1.0}


def test_a_tokenizer_with_two_tokens_of_one_number_is_refused(prep, corpus, tmp_path):
    bytes_as_subwords().save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["b"] = content["model"]["vocab"]["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    data = {"source": {"kind": "text", "paths": [str(corpus)]}}
    with pytest.raises(DataError, match=r"tokenizer .*: the tokens 'a' and 'b' have the same number 97; the file"):
        prep(data | {"tokenizer": {"kind": "huggingface", "path": str(tmp_path)}})


def test_equal_documents_are_on_one_side(prep, tmp_path):
    folder = tmp_path / "twins"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i}.txt").write_text(f"text number {i % 20} " * 8)
    prepared = prep({"source": {"kind": "text", "paths": [str(folder)]}, "validation_fraction": 0.3})
    found = {split: set(stored_text(prepared.streams[split][0], 32).split(b"\0")) - {b""} for split in ALL_SPLITS}
    assert not found["train"] & found["validation"]
    assert len(found["train"] | found["validation"]) == 20


def test_same_input_same_bytes_and_key(prep, of_text):
    first, second = prep(of_text(), cache="a"), prep(of_text(), cache="b")
    assert contents(first) == contents(second)
    assert first.key == second.key


def test_second_time_is_a_cache_hit_and_changes_nothing(prep, of_text):
    first = prep(of_text())
    folder = first.streams["train"][0].folder
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    second = prep(of_text())
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert (first.seconds > 0, second.seconds) == (True, 0.0)
    assert (second.key, second.rows("train")) == (first.key, first.rows("train"))
    assert "found in the cache" in second.report


@pytest.mark.parametrize(
    "change",
    [{"seq_len": 16}, {"validation_fraction": 0.3}, {"tokenizer": {"kind": "bpe", "vocab_size": 300}}, "file"],
    ids=["seq_len", "fraction", "tokenizer", "file"],
)
def test_what_decides_the_rows_decides_the_key(prep, of_text, corpus, change):
    first = prep(of_text())
    if change == "file":
        (corpus / "00.txt").write_text("changed " * 50)
    second = prep(of_text(**({} if change == "file" else change)))
    assert second.key != first.key
    assert contents(second) != contents(first)


def test_seed_and_workers_do_not_change_rows_of_text(prep, of_text):
    assert prep(of_text(), seed=1).key == prep(of_text(workers=3), seed=2).key


@pytest.mark.slow
def test_worker_processes_make_the_same_shards(prep, of_text):
    data = of_text(tokenizer={"kind": "bpe", "vocab_size": 300})
    alone = prep(data | {"workers": 1}, cache="a", piece_bytes=2000)
    together = prep(data | {"workers": 2}, cache="b", piece_bytes=2000)
    assert len(read_index(alone.streams["train"][0].folder)) > 3
    assert contents(alone) == contents(together)


def test_an_error_in_a_worker_reaches_the_user(prep, corpus):
    (corpus / "20.txt").write_bytes(b"\xff" * 3000)
    with pytest.raises(DataError, match=r"20\.txt: line 1: byte 0 is not UTF-8"):
        prep({"source": {"kind": "text", "paths": [str(corpus)]}, "workers": 2}, piece_bytes=2000)


KILLED = """
import sys
from pathlib import Path
from zoo.data import prepare
from zoo.data.config import DataConfig
data = DataConfig.model_validate({"source": {"kind": "text", "paths": [sys.argv[1]]}, "validation_fraction": 0.2})
prepare(data, max_seq_len=32, vocab_size=1000, seed=17, cache_dir=sys.argv[2], piece_bytes=1, quiet=True)
"""


@pytest.mark.slow
def test_a_killed_preparation_is_continued(prep, of_text, corpus, tmp_path):
    clean = contents(prep(of_text(), cache="clean", piece_bytes=1))
    cache = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(corpus), str(cache)])
    deadline = time.monotonic() + 120
    while len(list(cache.glob("*.building/done/*.json"))) < 5:
        assert child.poll() is None, "the child ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = list(cache.glob("*.building/done/*.json"))
    assert 5 <= len(done) < 40
    # A shard left half written by the kill, whose part is not marked as done.
    (building,) = cache.glob("*.building")
    half = building / "train" / "part-00039"
    half.mkdir(parents=True)
    (half / "shard.00000.mds.zstd").write_bytes(b"half")
    written = {p.name: shard.stat().st_ino for p in done for shard in building.glob(f"*/part-{p.stem}/index.json")}

    prepared = prep(of_text(), cache="killed", piece_bytes=1)
    assert contents(prepared) == clean
    folder = prepared.streams["train"][0].folder.parent
    kept = {p.name: shard.stat().st_ino for p in done for shard in folder.glob(f"*/part-{p.stem}/index.json")}
    assert kept == written
    assert not list(cache.glob("*.building"))


INTERRUPTED = """
import os, signal, threading, time
from zoo.data import packing

def slow(piece, *settings, **more):  # in a worker
    os.write(1, b"begun\\n")  # in one write: two processes share the pipe
    time.sleep(60)

if __name__ == "__main__":
    import sys
    from pathlib import Path
    from zoo.data.config import DataConfig
    from zoo.data import prepare

    settings = {"source": {"kind": "text", "paths": [sys.argv[1]]}, "workers": 2, "tokenizer": {"kind": sys.argv[3]}}
    data = DataConfig.model_validate(settings)
    prepare(data, max_seq_len=32, vocab_size=5000, seed=17, cache_dir=sys.argv[2], piece_bytes=1, quiet=True)
else:
    packing.pack = packing.count_words = slow
"""


@pytest.mark.parametrize(("everyone", "tokenizer"), [(True, "byte"), (False, "byte"), (True, "bpe"), (False, "bpe")])
def test_ctrl_c_ends_the_tokenising_processes_at_once_and_without_a_word(corpus, tmp_path, everyone, tokenizer):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    command = [sys.executable, str(script), str(corpus), str(tmp_path / "cache"), tokenizer]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **settings) as child:
        assert [child.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        (os.killpg if everyone else os.kill)(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    assert errors.count("Traceback") == errors.count("\nKeyboardInterrupt\n") == 1, errors
    assert not list((tmp_path / "cache").glob("bpe-*")), "of words that are counted nothing can be used later"


def test_what_was_cut_short_a_week_ago_is_removed_unless_a_process_owns_it(prep, of_text, tmp_path, capfd):
    cache, long_ago = tmp_path / "cache", time.time() - ABANDONED_S - 60
    old, owned, worked_on, young = (f"text-{digit * 16}" for digit in "0123")
    theirs = "house"  # the cache may be any folder: what the zoo did not make stays
    for name in (old, owned, worked_on, young, theirs):
        (cache / f"{name}.building" / "done").mkdir(parents=True)
        if name != young:
            os.utime(cache / f"{name}.building" / "done", (long_ago, long_ago))
            os.utime(cache / f"{name}.building", (long_ago, long_ago))
    (cache / f"{worked_on}.building" / "done" / "00000.json").write_text("{}")
    with (cache / f".{owned}.lock").open("a") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        prep(of_text(), quiet=False)
    left = sorted(folder.name for folder in cache.glob("*.building"))
    assert left == [f"{name}.building" for name in (theirs, owned, worked_on, young)]
    assert f"{old}.building: cut short more than a week ago" in capfd.readouterr().err


def test_two_at_once_make_one_folder(prep, of_text):
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: prep(of_text(), cache="shared", piece_bytes=1), range(2)))
    assert sorted(prepared.seconds > 0 for prepared in both) == [False, True]
    assert contents(both[0]) == contents(both[1]) == contents(prep(of_text(), cache="a", piece_bytes=1))


def test_bpe_is_trained_once_and_on_training_documents(prep, of_text, tmp_path):
    data = of_text(tokenizer={"kind": "bpe", "vocab_size": 300})
    first = prep(data)
    (folder,) = (tmp_path / "cache").glob("bpe-*")
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    second = prep(data)
    assert (folder / "tokenizer.json").stat().st_mtime_ns == before
    assert second.tokenizer.identity == first.tokenizer.identity == prep(data, cache="other").tokenizer.identity
    assert first.bytes_per_token["train"] > 1.5
    rows = stored_tokens(first.streams["train"][0])
    assert max(map(max, rows)) < 300


@pytest.mark.slow
@pytest.mark.parametrize("training_bytes", [3000, 10**8])
def test_words_are_counted_by_several_processes_as_by_one(prep, of_text, training_bytes, corpus):
    """The bound on the text falls into a piece, or behind all."""
    tokenizer = {"kind": "bpe", "vocab_size": 300, "training_bytes": training_bytes}
    found = [
        prep(of_text(tokenizer=tokenizer, workers=workers), cache=f"{workers}{piece}", piece_bytes=piece).tokenizer
        for workers, piece in ((1, 1 << 20), (1, 400), (2, 400))
    ]
    assert len({each.identity for each in found}) == 1
    texts, size = [], 0
    for path in sorted(corpus.rglob("*.txt")):
        if not held_out(path.read_text(), 0.2):
            texts.append(path.read_text())
            size += len(texts[-1].encode())
        if size >= training_bytes:
            break
    assert found[0].identity == train_bpe(BpeTokenizer.model_validate(tokenizer), texts).identity


@pytest.mark.slow
def test_words_of_documents_that_were_read_already_are_counted_by_processes(prep, of_text, tmp_path, monkeypatch):
    """As of a dataset, whose pieces hold their text.  Little is read beyond the share: it has work for two."""
    texts = [f"word{i} and word{i % 7}; " * 9 for i in range(300)]
    yielded = []

    def of_dataset(source, piece_bytes, fraction):
        for i in range(0, 300, 2):
            yielded.append(i)
            yield Texts(tuple(texts[i : i + 2]), i, "d")

    monkeypatch.setattr(preparing, "pieces", of_dataset)
    tokenizer = {"kind": "bpe", "vocab_size": 300, "training_bytes": 1200}
    data = of_text(tokenizer=tokenizer, workers=4) | {"validation_fraction": 0.0}
    found = prep(data, piece_bytes=800).tokenizer
    counted = next(n for n in range(300) if sum(map(len, texts[:n])) >= 1200)
    assert found.identity == train_bpe(BpeTokenizer.model_validate(tokenizer), texts[:counted]).identity
    assert len(yielded) <= 8
    assert not list((tmp_path / "cache").glob("*/words")), "scratch files"


def test_words_that_cannot_be_counted_leave_nothing_in_the_cache(prep, of_text, corpus, tmp_path):
    (corpus / "39.txt").write_bytes(b"\xff" * 9)
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"39\.txt: .*UTF-8"):
            prep(of_text(tokenizer={"kind": "bpe", "vocab_size": 300}, workers=workers), piece_bytes=400)
    assert not list((tmp_path / "cache").glob("bpe-*"))


@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.parametrize(("made", "inside"), [("bpe", ""), ("bpe", "words"), ("text", "tokens")])
def test_scratch_files_are_not_written_or_removed_through_a_link(prep, of_text, tmp_path, made, inside):
    data = of_text(tokenizer={"kind": "bpe", "vocab_size": 300}, workers=2)
    prep(data, cache="known", piece_bytes=400)
    (folder,) = (tmp_path / "known").glob(f"{made}-*")
    link = tmp_path / "cache" / f"{folder.name}.building" / inside
    link.parent.mkdir(parents=True)
    kept = tmp_path / "theirs" / ("" if inside else "words") / "0" / "kept"
    kept.parent.mkdir(parents=True)
    kept.write_text("kept")
    link.symlink_to(tmp_path / "theirs")
    with pytest.raises(DataError, match=r"building\S*: a symbolic link to \S+theirs; nothing is written"):
        prep(data, piece_bytes=400)
    assert kept.read_text() == "kept"
    assert len(list((tmp_path / "theirs").rglob("*"))) == len(kept.relative_to(tmp_path / "theirs").parts)


def test_an_unreadable_file_of_a_source_is_not_called_the_cache(prep, of_text, monkeypatch, tmp_path):
    def refuse(source):
        raise PermissionError(errno.EACCES, "Permission denied", "/data/closed")

    monkeypatch.setattr(preparing, "notes", refuse)
    with pytest.raises(DataError, match=r"^/data/closed: cannot be read: Permission denied$"):
        prep(of_text())


def test_bpe_larger_than_the_text_can_fill_is_as_large_as_it_gets(prep, of_text):
    prepared = prep(of_text(tokenizer={"kind": "bpe", "vocab_size": 900, "min_frequency": 50}))
    assert 257 <= prepared.tokenizer.vocab_size < 900


def test_huggingface_tokenizer_must_fit_the_model(prep, of_text, tmp_path):
    prepared = prep(of_text(tokenizer={"kind": "bpe", "vocab_size": 300}))
    prepared.tokenizer.save(tmp_path)
    data = of_text(tokenizer={"kind": "huggingface", "path": str(tmp_path)})
    with pytest.raises(DataError, match=r"tokenizer has 300 tokens, model\.vocab_size is 299; raise"):
        prep(data, vocab_size=299)
    assert contents(prep(data)) == contents(prepared)


def test_validation_source(prep, of_text, tmp_path):
    (tmp_path / "held.txt").write_text("held out text " * 30)
    prepared = prep(of_text(validation_source={"kind": "text", "paths": [str(tmp_path / "held.txt")]}))
    assert prepared.counts("train").documents == 40
    assert prepared.counts("validation").documents == 1
    assert stored_text(prepared.streams["validation"][0], 32) == b"held out text " * 30 + b"\0"


def test_a_missing_source_is_said_before_another_is_prepared(prep, of_text, tmp_path):
    with pytest.raises(DataError, match="absent: no such file"):
        prep(of_text(validation_source={"kind": "text", "paths": ["absent"]}))
    assert not list((tmp_path / "cache").glob("text-*"))


def test_no_validation(prep, of_text):
    prepared = prep(of_text(validation_fraction=0))
    assert prepared.streams["validation"] == ()
    assert prepared.rows("validation") == 0
    assert prepared.bytes_per_token["validation"] is None


def test_synthetic_follows_the_seed_unless_it_states_one(prep):
    def key(recipe_seed, **more):
        source = {"kind": "synthetic", "task": "mqar", "pairs": 4, "vocab_size": 100, "rows": 20, "validation_rows": 5}
        return prep({"source": source | more}, seed=recipe_seed).key

    assert key(1) != key(2)
    assert key(1, seed=5) == key(2, seed=5)


def test_synthetic_rows_and_report(prep):
    source = {"kind": "synthetic", "task": "copy", "vocab_size": 50, "rows": 40, "validation_rows": 7}
    prepared = prep({"source": source})
    assert (prepared.rows("train"), prepared.rows("validation")) == (40, 7)
    assert prepared.tokenizer is None
    assert prepared.bytes_per_token == {"train": None, "validation": None}
    assert "no tokenizer (rows are numbers)" in prepared.report


def test_report_numbers(prep, of_text, corpus):
    prepared = prep(of_text())
    counts = prepared.counts("train")
    row = next(line.split() for line in prepared.report.splitlines() if line.startswith("text") and " train " in line)
    assert row == ["text", "train", *(f"{n:,}" for n in (counts.documents, counts.tokens, counts.bytes, counts.rows))]
    assert counts.documents + prepared.counts("validation").documents == 40


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"validation_fraction": 0.0001},
            r"no validation rows: none of 40 documents was held out \(validation_fraction 0.0001\)",
        ),
        ({"validation_fraction": 0.9999}, "no training rows: all of its 40 documents were held out"),
        ({"source": {"kind": "text", "paths": ["nowhere"]}}, "nowhere: no such file or folder"),
        ({"seq_len": 64}, r"data\.seq_len: must be at most model\.max_seq_len = 32; found 64"),
    ],
)
def test_what_cannot_be_prepared(prep, of_text, data, message):
    with pytest.raises(DataError, match=message):
        prep(of_text(**data))


def test_a_text_of_nothing(prep, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": null}\n')
    with pytest.raises(DataError, match="no training rows: no text"):
        prep({"source": {"kind": "jsonl", "paths": [str(tmp_path)]}})


def test_data_errors_exit_with_2():
    assert DataError("x").exit_code == 2


def test_cache_that_cannot_be_written(prep, of_text, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"data cache .*file"):
        prep(of_text(), cache="file")


def test_cache_folder_by_environment(of_text, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from zoo.data.config import DataConfig

    monkeypatch.setenv("ZOO_DATA_CACHE", str(tmp_path / "elsewhere"))
    model = SimpleNamespace(max_seq_len=32, vocab_size=300)
    recipe = SimpleNamespace(data=DataConfig.model_validate(of_text()), model=model, seed=1)
    assert str(tmp_path / "elsewhere" / "text-") in prepare_command(recipe)


def test_progress_when_piped_is_lines_on_standard_error(prep, of_text, capfd, monkeypatch):
    monkeypatch.setattr("zoo.data.progress.Progress.interval_s", 0.0)
    prep(of_text(), piece_bytes=2000, quiet=False)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("preparing text (")
    assert "\r" not in err
    assert "\x1b" not in err
    prep(of_text(), piece_bytes=2000, quiet=False)
    assert capfd.readouterr() == ("", "")


def read_only(monkeypatch, cache) -> None:
    """Make every try to write below a folder fail as on a read-only file system (permissions do not hold for root)."""
    plain_open, plain_mkdir = Path.open, Path.mkdir

    def refuse(path):
        if path.is_relative_to(cache):
            raise OSError(errno.EROFS, "Read-only file system", str(path))

    def open_(path, mode="r", *arguments, **settings):
        if set(mode) & set("wax+"):
            refuse(path)
        return plain_open(path, mode, *arguments, **settings)

    def mkdir(path, *arguments, **settings):
        if not path.is_dir():
            refuse(path)
        plain_mkdir(path, *arguments, **settings)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(Path, "mkdir", mkdir)


def test_the_command_leaves_nothing_to_be_decompressed(tmp_path, corpus):
    path = tmp_path / "r.yaml"
    model = "{d_model: 8, max_seq_len: 32, ffn: {kind: swiglu, d_ff: 8}, blocks: {full: {kind: full, n_heads: 1}}"
    data = f"{{source: {{kind: text, paths: [{corpus}]}}, cache_dir: {tmp_path / 'cache'}}}"
    path.write_text(f"name: r\nmodel: {model}, layers: full}}\ndata: {data}\n")
    prepare_command(load_recipe(path, ["model.vocab_size=264"]))
    packed = list((tmp_path / "cache").rglob("*.mds.zstd"))
    assert packed
    assert all(each.with_suffix("").is_file() for each in packed)


@pytest.mark.parametrize("tokenizer", [{"kind": "byte"}, {"kind": "bpe", "vocab_size": 300}])
def test_prepared_rows_in_a_read_only_cache_are_used(prep, of_text, tmp_path, monkeypatch, tokenizer):
    first = prep(of_text(tokenizer=tokenizer))
    read_only(monkeypatch, tmp_path / "cache")
    assert prep(of_text(tokenizer=tokenizer)).key == first.key
    with pytest.raises(
        DataError, match=r"cannot be written \(Read-only file system\), and .* is not prepared in it; set"
    ):
        prep(of_text(tokenizer=tokenizer, seq_len=16))
