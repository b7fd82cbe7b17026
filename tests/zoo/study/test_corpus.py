"""The script that fetches the text of recipes/studies/asa_small: checksums, text of pages, documents."""

import hashlib
import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "recipes" / "studies" / "asa_small" / "corpus.py"
_SPEC = importlib.util.spec_from_file_location("corpus", SCRIPT)
corpus = importlib.util.module_from_spec(_SPEC)
sys.modules["corpus"] = corpus
_SPEC.loader.exec_module(corpus)


def test_packages_are_named_once_with_version_and_checksum():
    names = [package.name for package in corpus.PACKAGES]
    assert len(set(names)) == len(names) > 8
    for package in corpus.PACKAGES:
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.version


def test_a_package_with_another_checksum_is_refused_and_one_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    data = b"not the package"
    (tmp_path / "some_1%3a2.0_all.deb").write_bytes(data)
    right = corpus.Package("some", "1:2.0", hashlib.sha256(data).hexdigest(), ".*")
    assert corpus.fetch(right, tmp_path).read_bytes() == data
    with pytest.raises(corpus.CorpusError, match=r"has SHA-256 .*, expected 00"):
        corpus.fetch(corpus.Package("some", "1:2.0", "00" * 32, ".*"), tmp_path)
    program = tmp_path / "apt-get"
    program.write_text("#!/bin/sh\necho 'E: Version not found' >&2; exit 100\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(corpus.CorpusError, match=r"cannot download version 3: E: Version not found.*snapshot\.debian"):
        corpus.fetch(corpus.Package("other", "3", "00" * 32, ".*"), tmp_path)


def test_the_text_of_a_page_has_its_paragraphs_and_no_markup():
    page = (
        "<html><head><title>t</title><style>p {}</style></head><body><nav><p>menu</p></nav><h1>Title</h1>\n"
        "<p>One &amp;\n   two.</p><ul><li>a</li><li>b</li></ul><pre>x = 1\n  y</pre>"
        "<script>bad()</script></body></html>"
    )
    text = corpus.html_text(page)
    assert [line for line in text.split("\n") if line] == ["Title", "One & two.", "a", "b", "x = 1", "  y"]


def test_files_that_are_not_utf_8_are_left_out_and_single_bytes_are_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"word " * 10_000 + b"stock market\x92s drop")
    assert corpus.text_of(tmp_path / "a.txt").endswith("stock markets drop")
    (tmp_path / "b.txt").write_bytes(bytes(range(128, 256)) * 10)
    assert corpus.text_of(tmp_path / "b.txt") == ""


def test_long_texts_are_cut_between_paragraphs_and_short_ones_dropped():
    paragraph = "x" * 999
    found = list(corpus.parts("\n\n".join([paragraph] * 250)))
    assert sum(len(each.replace("\n\n", "")) for each in found) == 250 * 999
    assert max(map(len, found)) < corpus.MOST + 1200
    assert list(corpus.parts("short")) == []


def test_equal_words_are_kept_once():
    seen: set[bytes] = set()
    assert corpus.new("a  b\nc", seen)
    assert not corpus.new("a b c", seen)
