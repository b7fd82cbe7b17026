import gzip
import json
import os
import pickle
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from zoo.data import DataError
from zoo.data.config import DataConfig
from zoo.data.sources import documents, fingerprint, pieces, reader_of, total_bytes
from zoo.data.sources.huggingface import READERS


def source(**settings):
    return DataConfig.model_validate({"source": settings}).source


def read(piece_bytes: int = 1 << 20, **settings) -> list[str]:
    return list(documents(source(**settings), piece_bytes))


def write_jsonl(path: Path, values: list, opener=open) -> Path:
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(value) + "\n" for value in values)
    return path


def library_files(stdlib) -> list[Path]:
    return reader_of(stdlib).files()


def test_stdlib_is_sorted_python_files_of_the_library_alone():
    files = library_files(source(kind="python-stdlib"))
    root = Path(sysconfig.get_paths()["stdlib"])
    inside = [p.relative_to(root).parts for p in files]
    assert files == sorted(files)
    assert ("json", "decoder.py") in inside
    assert not any({"site-packages", "test", "__pycache__"} & set(parts[:-1]) for parts in inside)
    assert len(library_files(source(kind="python-stdlib", tests=True))) > len(files)


def test_a_folder_of_the_library_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Root, who runs tests too, may read every folder: os.scandir raises what others see."""
    (tmp_path / "json").mkdir()
    (tmp_path / "a.py").write_text("a = 1")
    scandir = os.scandir

    def scan(path):
        if os.fspath(path) == str(tmp_path / "json"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert library_files(source(kind="python-stdlib")) == [tmp_path / "a.py"]
    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(DataError, match="json: the folder cannot be read: Permission denied"):
        library_files(source(kind="python-stdlib"))


def test_text_paths_are_files_folders_and_globs_each_file_once(corpus):
    first = str(corpus / "00.txt")
    texts = read(kind="text", paths=[first, str(corpus), str(corpus / "**" / "*.txt")])
    assert texts == [p.read_text(encoding="utf-8") for p in sorted(corpus.iterdir())]


def test_paths_are_relative_to_the_working_directory(corpus, monkeypatch):
    monkeypatch.chdir(corpus.parent)
    assert len(read(kind="text", paths=["corpus/0*.txt"])) == 10


@pytest.mark.parametrize("separator", ["\n\n", "<|end|>", "é"])
@pytest.mark.parametrize("piece_bytes", [1, 7, 64, 1 << 20])
def test_pieces_of_any_size_hold_every_document_once(tmp_path, separator, piece_bytes):
    wanted = [f"Dokument {i} naïve\nline" * (i % 4) for i in range(50)] + ["last"]
    (tmp_path / "a.txt").write_text(separator.join(wanted), encoding="utf-8")
    texts = read(piece_bytes, kind="text", paths=[str(tmp_path)], separator=separator)
    assert [t for t in texts if t] == [t for t in wanted if t]


@pytest.mark.parametrize("piece_bytes", [1, 100, 1 << 20])
def test_jsonl_lines_in_pieces(tmp_path, piece_bytes):
    wanted = [f"ünï {i}" for i in range(30)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": t} for t in wanted])
    assert read(piece_bytes, kind="jsonl", paths=[str(path)]) == wanted
    assert len(list(pieces(source(kind="jsonl", paths=[str(path)]), piece_bytes))) in {1: (30,), 100: (6, 7, 8)}.get(
        piece_bytes, (1,)
    )


def test_jsonl_gz_and_null(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl.gz", [{"body": "one"}, {"body": None}, {"body": "two"}], gzip.open)
    assert read(kind="jsonl", paths=[str(path)], field="body") == ["one", "", "two"]


@pytest.mark.parametrize(("suffix", "codec"), [("zst", "zstd"), ("gz", "gzip"), ("bz2", "bz2"), ("lz4", "lz4")])
def test_compressed_files(tmp_path, suffix, codec):
    import pyarrow

    with pyarrow.CompressedOutputStream(str(tmp_path / f"a.jsonl.{suffix}"), codec) as file:
        file.write(b"".join(json.dumps({"text": f"döc {i}"}).encode() + b"\n" for i in range(5000)))
    assert read(100, kind="jsonl", paths=[str(tmp_path)]) == [f"döc {i}" for i in range(5000)]
    with pyarrow.CompressedOutputStream(str(tmp_path / f"b.txt.{suffix}"), codec) as file:
        file.write(b"eins--zwei")
    assert read(kind="text", paths=[str(tmp_path)], separator="--") == ["eins", "zwei"]


def test_parquet_row_groups(tmp_path):
    import pyarrow.parquet

    table = pyarrow.table({"content": [f"row {i}" for i in range(10)], "n": range(10)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    settings = {"kind": "parquet", "paths": [str(tmp_path)], "column": "content"}
    assert len(list(pieces(source(**settings), 1))) == 4
    assert read(1, **settings) == read(**settings) == [f"row {i}" for i in range(10)]
    with pytest.raises(DataError, match=r"no column 'text'; it has 'content', 'n'"):
        read(kind="parquet", paths=[str(tmp_path)])


@pytest.mark.parametrize("streaming", [False, True])
def test_huggingface_local_folder_without_a_network(tmp_path, streaming, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "ds"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"body": f"doc {i}"} for i in range(25)])
    settings = {"kind": "huggingface", "path": str(folder), "field": "body", "streaming": streaming}
    assert read(20, **settings) == [f"doc {i}" for i in range(25)]
    assert read(20, **settings, max_documents=7) == [f"doc {i}" for i in range(7)]
    with pytest.raises(DataError, match="no column 'text'; it has 'body'"):
        read(kind="huggingface", path=str(folder), streaming=streaming)


def test_huggingface_errors_name_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"dataset '.*empty' cannot be loaded"):
        read(kind="huggingface", path=str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": 5}\n', "line 2: the text must be a string; found int"),
        (b'{"text": "a"}\n{"txt": "b"}\n', "line 2: needs an object with the key 'text'; found 'txt'"),
        (b'{"text": "a"}\n[1]\n', "line 2: needs an object with the key 'text'; found list"),
        (b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"line 2: byte 24 is not UTF-8 text \(0xff\)"),
        (b'{"text": "a\\ud800"}\n', "half a surrogate pair"),
        (b'{"text": "a"}\n' + b"[" * 200_000 + b"\n", "line 2: not JSON: maximum recursion depth"),
    ],
)
def test_broken_jsonl_names_file_and_place(tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.jsonl: .*{message}"):
        read(kind="jsonl", paths=[str(tmp_path)])


@pytest.mark.parametrize("separator", [None, "||"])
def test_text_that_is_not_utf8_names_file_and_byte(tmp_path, separator):
    (tmp_path / "bad.txt").write_bytes(b"good||caf\xe9||good")
    with pytest.raises(DataError, match=r"bad\.txt: line 1: byte 9 is not UTF-8 text \(0xe9\)"):
        read(kind="text", paths=[str(tmp_path)], separator=separator)


def test_the_size_of_a_text_is_that_of_its_files_unless_they_are_compressed(tmp_path):
    """Progress would say "115 of about 28 MB" otherwise."""
    plain = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * 1000}] * 50)
    packed = write_jsonl(tmp_path / "b.jsonl.gz", [{"text": "x" * 1000}] * 50, gzip.open)
    assert total_bytes(source(kind="jsonl", paths=[str(plain)])) == plain.stat().st_size
    assert total_bytes(source(kind="jsonl", paths=[str(plain), str(packed)])) is None
    pq = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"text": ["x" * 1000] * 50})
    pq.write_table(table, tmp_path / "c.parquet")
    assert total_bytes(source(kind="parquet", paths=[str(tmp_path / "c.parquet")])) is None


def test_damaged_gzip_is_an_error(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl.gz", [{"text": "x" * 1000}] * 50, gzip.open)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
        read(kind="jsonl", paths=[str(path)])


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["absent.txt"], "absent.txt: no such file or folder"),
        (["*.nothing"], r"\*.nothing: no file matches"),
        (["hollow"], "hollow: the folder holds no .txt"),
        (["empty.txt"], "empty.txt: the file is empty"),
        (["~no-such-user/a.txt"], "~no-such-user/a.txt: there is no such user's home folder"),
        (["a\0.txt"], r"a\\x00\.txt'?: must be a path; a NUL character"),
        (["x" * 300], "source text: x+: cannot be read: File name too long"),
    ],
)
def test_missing_and_empty_paths(tmp_path, monkeypatch, paths, message):
    monkeypatch.chdir(tmp_path)
    Path("hollow").mkdir()
    Path("empty.txt").touch()
    with pytest.raises(DataError, match=message):
        read(kind="text", paths=paths)


@pytest.mark.parametrize("size", [20, 1_000_000])
def test_fingerprint_follows_the_content_of_a_file_of_the_same_size_and_time(tmp_path, size):
    path = tmp_path / "a.txt"
    path.write_text("x" * size)
    settings = source(kind="text", paths=[str(path)])
    before, times = fingerprint(settings), path.stat()
    for text in ("y" + "x" * (size - 1), "x" * (size - 1) + "y"):
        path.write_text(text)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert fingerprint(settings) != before


def test_fingerprint_follows_the_files(corpus):
    settings = source(kind="text", paths=[str(corpus)])
    before = fingerprint(settings)
    assert fingerprint(settings) == before
    (corpus / "00.txt").write_text("other", encoding="utf-8")
    assert fingerprint(settings) != before


def test_parquet_text_that_is_not_utf8_names_file_and_row(tmp_path):
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.Array.from_buffers(
        pyarrow.string(),
        5,
        [
            None,
            pyarrow.py_buffer(np.arange(0, 24, 4, dtype=np.int32).tobytes()),
            pyarrow.py_buffer(b"goodgoodcaf\xe9goodgood"),
        ],
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(
        DataError, match=r"a\.parquet: row 2 \(the first is 0\): byte 3 of the text is not UTF-8 \(0xe9\)"
    ):
        read(kind="parquet", paths=[str(tmp_path)])


def test_parquet_column_of_other_values_names_the_row(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": [b"x", b"y"]}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"a\.parquet: row 0 \(the first is 0\): the text must be a string; found bytes"
    ):
        read(kind="parquet", paths=[str(tmp_path)])


def test_a_huggingface_folder_with_a_loading_script_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "ds"
    folder.mkdir()
    (folder / "ds.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for path in (folder, folder / "ds.py"):
        with pytest.raises(DataError, match="cannot be loaded") as raised:
            read(kind="huggingface", path=str(path))
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


def test_a_huggingface_folder_with_a_pointer_of_git_lfs(tmp_path):
    (tmp_path / "train.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n")
    with pytest.raises(DataError, match=r"train\.jsonl: a Git LFS pointer"):
        read(kind="huggingface", path=str(tmp_path))


def test_a_reader_of_the_datasets_library_is_no_dataset(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(Evil()))
    pandas = source(kind="huggingface", path="pandas")
    with pytest.raises(DataError, match="dataset 'pandas': the name of a reader"):
        list(documents(pandas, 1000))
    assert not (tmp_path / "executed").exists()


def test_every_reader_of_the_datasets_library_is_known():
    packaged_modules = pytest.importorskip("datasets.packaged_modules")
    assert set(packaged_modules._PACKAGED_DATASETS_MODULES) <= set(READERS)
