import codecs
import gzip
import io
import json
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data import DataError, reading
from zoo.data.config import DataConfig
from zoo.data.reading import decoded, separated
from zoo.data.sources import documents, fingerprint, separator_notes


def source(**settings):
    return DataConfig.model_validate({"source": settings}).source


def read(path, piece_bytes: int = 1 << 20, **settings) -> list[str]:
    return list(documents(source(kind="text", paths=[str(path)], **settings), piece_bytes))


def in_blocks(data: bytes, size: int) -> list[tuple[int, bytes]]:
    return [(i, data[i : i + size]) for i in range(0, len(data), size)]


@given(st.text(), st.integers(1, 9))
def test_text_decoded_in_blocks_is_the_text(text, size):
    assert "".join(decoded("x", iter(in_blocks(text.encode(), size)))) == text


@given(st.text(alphabet="ab\n\r-é"), st.sampled_from(["\n\n", "\n", "\r\n", "--", "\n-\n", "é"]), st.integers(1, 9))
@settings(max_examples=300)
def test_documents_cut_in_blocks_are_those_of_the_whole(text, separator, size):
    found, document = [], b""
    for offset, data, last in separated(iter(in_blocks(text.encode(), size)), separator):
        assert text.encode()[offset : offset + len(data)] == data
        document += data
        if last:
            found.append(document)
            document = b""
    assert found == reading.separator_pattern(separator).split(text.encode())


@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 20])
def test_blank_lines_with_crlf_separate_documents(tmp_path, piece_bytes):
    wanted = [f"document {i}\nline\tnaïve" for i in range(20)]
    (tmp_path / "a.txt").write_bytes("\n\n".join(wanted).replace("\n", "\r\n").encode())
    found = read(tmp_path, piece_bytes, separator="\n\n")
    assert [text.replace("\r\n", "\n") for text in found if text] == wanted


def test_a_separator_that_is_nowhere_is_an_error_and_one_missing_somewhere_is_noted(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("one\n\ntwo")
    settings = {"kind": "text", "paths": [str(tmp_path)]}
    assert separator_notes(source(**settings)) == []
    assert separator_notes(source(**settings, separator="\n\n")) == []
    with pytest.raises(DataError, match=r"separator '<end>': occurs in none of 3 files .*leave it out"):
        separator_notes(source(**settings, separator="<end>"))
    with pytest.raises(DataError, match=r"separator '\\\\n\\\\n': .*an escape such as \\n needs double quotes"):
        separator_notes(source(**settings, separator=r"\n\n"))
    (tmp_path / "b.txt").write_text("one document")
    (note,) = separator_notes(source(**settings, separator="\n\n"))
    assert note.startswith("source text: separator '\\n\\n': not in 1 of 3 files, each one document: ")
    assert note.endswith("b.txt")


def test_preparation_refuses_and_notes_separators(prep, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("some words\n\n" * 50)
    (folder / "b.txt").write_text("one document " * 50)
    (folder / "c.csv").write_text("1,2")
    data = {"source": {"kind": "text", "paths": [str(folder)], "separator": "\n\n"}, "validation_fraction": 0}
    for _ in range(2):  # made, and found again
        report = prep(data).report
        assert "source text: separator '\\n\\n': not in 1 of 2 files" in report
        assert "source text: not read: 1 .csv files" in report
    data["source"] |= {"separator": "<end>"}
    for tokenizer in ({"kind": "byte"}, {"kind": "bpe", "vocab_size": 300}):
        with pytest.raises(DataError, match="separator '<end>': occurs in none of 2 files"):
            prep(data | {"tokenizer": tokenizer})


@pytest.mark.parametrize("opener", [open, gzip.open])
@pytest.mark.parametrize("separator", [None, "\n\n"])
def test_a_byte_order_mark_is_no_text(tmp_path, opener, separator):
    path = tmp_path / ("a.txt.gz" if opener is gzip.open else "a.txt")
    with opener(path, "wb") as file:
        file.write(codecs.BOM_UTF8 + b"eins\n\nzwei")
    assert read(path, separator=separator) == (["eins\n\nzwei"] if separator is None else ["eins", "zwei"])
    assert "without its byte-order mark" in fingerprint(source(kind="text", paths=[str(path)]))


def test_a_byte_order_mark_before_json(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"text": "a"}\n{"text": "b"}\n')
    assert list(documents(source(kind="jsonl", paths=[str(tmp_path)]), 1)) == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-16-le"])
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_other_encodings_are_refused_by_name(tmp_path, encoding, kind):
    path = tmp_path / f"a.{'txt' if kind == 'text' else kind}"
    path.write_bytes(json.dumps({"text": "some words"}).encode(encoding))
    message = r"UTF-(16|32) text .*convert it" if encoding in ("utf-16", "utf-32") else "UTF-16 without a byte-order"
    with pytest.raises(DataError, match=rf"{path.name}: .*{message}"):
        list(documents(source(kind=kind, paths=[str(path)]), 1 << 20))


def test_xz_and_files_of_several_streams(tmp_path):
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"one") + lzma.compress(b" two"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one") + gzip.compress(b" two"))
    assert read(tmp_path) == ["one two"] * 2
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"one" * 1000)[:-9])
    with pytest.raises(DataError, match=r"a\.txt\.xz: cannot be read"):
        read(tmp_path)
    (tmp_path / "a.txt.xz").write_bytes(b"plain text")
    with pytest.raises(DataError, match=r"a\.txt\.xz: cannot be read"):
        read(tmp_path)


def test_errors_far_into_a_file_name_line_and_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BYTES", 16)
    content = io.BytesIO(b"a line of text\n" * 100 + b"caf\xe9\n" + b"more\n" * 100)
    for name, opener in (("a.txt", open), ("a.txt.gz", gzip.open)):
        with opener(tmp_path / name, "wb") as file:
            file.write(content.getvalue())
        for separator in (None, "\n"):
            with pytest.raises(DataError, match=rf"{name}: line 101: byte 1503 is not UTF-8 text \(0xe9\)"):
                read(tmp_path / name, separator=separator)


def test_a_line_of_json_that_is_too_long_is_refused_by_number(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LINE_BYTES", 1 << 10)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * n}) + "\n" for n in (10, 900, 2000)))
    with pytest.raises(DataError, match=r"a\.jsonl: line 3 is longer than the most"):
        list(documents(source(kind="jsonl", paths=[str(path)]), 1))
