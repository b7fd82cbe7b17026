"""Text as users have it: many kinds of file, HTML, files that cannot be read, one file as the whole corpus."""

import gzip
import json
import lzma
from pathlib import Path

import pytest

from zoo.data import prepare
from zoo.data.config import DataConfig
from zoo.data.errors import DataError
from zoo.data.packing import held_out
from zoo.data.places import with_absolute_paths
from zoo.data.sources import documents, notes, validation_cut
from zoo.data.sources import held_out as held_out_files
from zoo.data.stored import stored_rows
from zoo.data.text_files import html_text
from zoo.recipe import load_recipe
from zoo.report.columns import data_read

PAGE = """<!doctype html><html><head><title>A page</title><style>p { color: red }</style>
<script>if (1 < 2) { alert("no") }</script></head><body><h1>Head &amp; tail</h1><p>One
   two <b>three</b>&nbsp;four.<p>Five<pre>a
  b</pre><ul><li>x<li>y</ul><!-- hidden --></body></html>"""


def source_of(**fields):
    return DataConfig.model_validate({"source": {"kind": "text", **fields}}).source


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("a.txt", "b.text", "c.md", "d.rst", "e.py", "f/g.md"):
        write(tmp_path / "mine" / name, f"text of {name}")
    write(tmp_path / "mine" / "h.html", PAGE)
    write(tmp_path / "mine" / "i.tex", "text of i.tex")
    write(tmp_path / "mine" / "j.pdf", b"%PDF")
    return tmp_path / "mine"


def test_a_folder_is_read_with_every_kind_of_text_and_the_rest_is_counted(folder):
    source = source_of(paths=[str(folder)])
    found = list(documents(source, 1 << 20))
    assert [text for text in found if text.startswith("text of ")] == [
        f"text of {name}" for name in ("a.txt", "b.text", "c.md", "d.rst", "e.py", "f/g.md")
    ]
    assert len(found) == 7
    assert notes(source) == ["source text: not read: 1 .pdf files, 1 .tex files"]


def test_extensions_choose_what_is_read_of_a_folder(folder):
    source = source_of(paths=[str(folder)], extensions=[".tex", ".md"])
    assert list(documents(source, 1 << 20)) == ["text of c.md", "text of f/g.md", "text of i.tex"]
    with pytest.raises(DataError, match=r"the folder holds no \.doc files \(not read: "):
        list(documents(source_of(paths=[str(folder)], extensions=[".doc"]), 1 << 20))
    with pytest.raises(ValueError, match="extensions"):
        source_of(paths=["x"], extensions=["tex"])


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [*("<", "<!", "<!--", "<a ", "</", "<a b='", "<?", "<![CDATA[", "</a ", "<a b='>", "<!-->", "<?>", "<![CDATA[>"),
     *("<![if>", "<![x[ ]>", "<script>", "<script></s>", "<script", "<a/", "<a =", "<!DOCTYPE [>", "<pre>", "&#"),
     *("<script></script ", "<<!-->!--", "<div><template>", "<!--></script>")],
)  # fmt: skip
def test_no_html_takes_long_or_fails(tmp_path, text):
    """Python's parser alone takes 8 s for 12 kB of `<a <a <a`, four times that for twice as much, and so on."""
    html_text(write(tmp_path / "page.html", text * 20_000))


def test_html_that_cannot_be_parsed_names_its_file(tmp_path):
    with pytest.raises(DataError, match=r"page\.html: HTML that cannot be parsed: .*convert it to text"):
        html_text(write(tmp_path / "page.html", f"<p>&#{'9' * 5000};"))


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("a<!-- <b> -->b<!-->c<!--->d", "abcd"),
        ("a<script>x < y; '<!--'</script >b<SCRIPT>z</SCRIPT>c", "abc"),
        ('a<script src="x" />b<script-like>c', "abc"),
        ("a<!doctype x><?php y ?><![CDATA[z]]>b", "ab"),
        ("a<!-- without an end b", "a"),
        ("a<style>without an end b", "a"),
        (f"<p>a{'< ' * 30}<b>b", f"a{'< ' * 30}b"),
        ("1 < 2 &amp; 3 > 2", "1 < 2 & 3 > 2"),
    ],
)
def test_what_is_seen_of_html_in_disorder(tmp_path, html, text):
    assert html_text(write(tmp_path / "page.html", html)) == text


def test_html_is_read_as_what_a_reader_sees(tmp_path):
    expected = "A page\n\nHead & tail\n\nOne two three\xa0four.\nFive\na\n  b\n\nx\n\ny"
    found = html_text(write(tmp_path / "page.html", PAGE))
    assert found.split() == expected.split()
    assert "\na\n  b\n" in found
    for word in ("alert", "color", "hidden", "<"):
        assert word not in found
    packed = tmp_path / "page.html.gz"
    packed.write_bytes(gzip.compress(PAGE.encode()))
    assert html_text(packed) == found
    assert list(documents(source_of(paths=[str(packed)], separator="\n\n"), 1 << 20)) == [found]


@pytest.fixture
def damaged(folder):
    write(folder / "k.txt", b"caf\xe9")
    write(folder / "l.txt", "x".encode("utf-16"))
    write(folder / "m.txt.gz", b"no gzip")
    write(folder / "n.txt", "")
    return folder


def test_on_error_skip_leaves_out_and_lists_what_cannot_be_read(damaged):
    with pytest.raises(DataError, match=r"k\.txt: line 1: byte 3 is not UTF-8 text"):
        list(documents(source_of(paths=[str(damaged)], extensions=[".txt"]), 1 << 20))
    source = source_of(
        paths=[str(damaged), str(damaged / "n.txt"), str(damaged / "c.md")], extensions=[".txt"], on_error="skip"
    )
    assert list(documents(source, 1 << 20)) == ["text of a.txt", "text of c.md"]
    first, second, *listed = notes(source)
    assert "2 empty files" in first
    assert second == "source text: skipped 3 files that cannot be read (on_error: skip):"
    assert [line.split(": ")[0].rsplit("/", 1)[-1] for line in listed] == ["k.txt", "l.txt", "m.txt.gz"]
    assert "byte 3 is not UTF-8 text" in listed[0]
    assert "UTF-16" in listed[1]


@pytest.mark.parametrize("separator", [None, " of "])
def test_what_on_error_skip_leaves_out_can_be_prepared(damaged, tmp_path, separator):
    def prepared(on_error):
        source = {"kind": "text", "paths": [str(damaged)], "separator": separator, "on_error": on_error}
        data = DataConfig.model_validate({"source": source, "validation_fraction": 0.3})
        return prepare(data, max_seq_len=16, vocab_size=264, seed=0, cache_dir=tmp_path / "cache", quiet=True)

    made = prepared("skip")
    written = texts_of(made, "train") + texts_of(made, "validation")
    assert "a.txt" in written
    assert "caf" not in written
    with pytest.raises(DataError, match=r"[klm]\.txt"):
        prepared("fail")


@pytest.mark.parametrize("name", ["A.TXT", "b.Md", "c.TXT.gz"])
def test_extensions_in_capitals_are_the_same(tmp_path, name):
    content = gzip.compress(b"text") if name.endswith(".gz") else b"text"
    write(tmp_path / name, content)
    assert list(documents(source_of(paths=[str(tmp_path)]), 1 << 20)) == ["text"]
    own = source_of(paths=[str(tmp_path)], extensions=[".TXT", ".mD"])
    assert list(documents(own, 1 << 20)) == ["text"]


def test_html_in_capitals_is_read_as_its_text(tmp_path):
    write(tmp_path / "A.HTML", "<p>seen<script>unseen</script>")
    assert list(documents(source_of(paths=[str(tmp_path)]), 1 << 20)) == ["seen"]


def test_with_separator_too(damaged):
    source = source_of(paths=[str(damaged)], extensions=[".txt"], separator=" of ", on_error="skip")
    assert list(documents(source, 1 << 20)) == ["text", "a.txt"]


def texts_of(prepared, split):
    """The text of a split, from its rows: each target once."""
    rows = (row.inputs.tolist() for row in stored_rows(prepared, split))
    return b"".join(bytes(number for number in row if number < 256) for row in rows).decode(errors="replace")


def prepared_of(tmp_path, paths, **fields):
    data = DataConfig.model_validate({"source": {"kind": "text", "paths": paths}, "seq_len": 16, **fields})
    return prepare(data, max_seq_len=16, vocab_size=264, seed=0, cache_dir=tmp_path / "cache", quiet=True)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize("line", ["line {}\n", "wörd {} "])
def test_one_file_is_a_whole_corpus(tmp_path, suffix, line):
    text = "".join(line.format(i) for i in range(2000))
    packing = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    path = write(tmp_path / f"one.txt{suffix}", packing(text.encode()))
    prepared = prepared_of(tmp_path, [str(path)], validation_fraction=0.1)
    train, held = (texts_of(prepared, split) for split in ("train", "validation"))
    assert abs(len(held.encode()) / len(text.encode()) - 0.1) < 0.02
    assert text.startswith(train[:-20])
    assert held[:-20] in text
    assert text.index(held[:200]) >= len(train) - 20
    _, place = validation_cut(prepared.config.source, 0.1)
    text.encode()[place:].decode()  # between two characters
    assert not line.endswith("\n") or text.encode()[place - 1 : place] == b"\n"


def test_a_few_files_that_are_all_on_one_side_are_cut_too(tmp_path):
    paths = [str(write(tmp_path / f"{i}.txt", f"file {i} " * 300)) for i in range(3)]
    source = source_of(paths=paths)
    assert validation_cut(source, 0.01) is not None
    prepared = prepared_of(tmp_path, paths, validation_fraction=0.01)
    assert prepared.rows("validation") > 0
    assert prepared.rows("train") > 100
    assert validation_cut(source, 0.0) is None
    assert validation_cut(source_of(paths=paths, separator=" "), 0.01) is None


def test_an_empty_file_does_not_stand_for_a_side(tmp_path):
    """A byte-order mark alone: the hash of no text is on the training side, and nothing could be trained on."""
    text = next(text for i in range(1000) if held_out(text := f"file {i} " * 300, 0.2))
    paths = [str(write(tmp_path / "a.txt", text)), str(write(tmp_path / "b.txt", "\ufeff"))]
    prepared = prepared_of(tmp_path, paths, validation_fraction=0.2)
    assert prepared.rows("validation") > 0
    assert prepared.rows("train") > 10


def test_a_few_files_are_read_for_their_side_once_for_all_later_calls(tmp_path, monkeypatch):
    paths = [str(write(tmp_path / f"{i}.txt", f"file {i} " * 300)) for i in range(3)]
    reads = []
    monkeypatch.setattr(held_out_files, "_read_on_both_sides", lambda files, *_: bool(reads.append(files)))
    cut = validation_cut(source_of(paths=paths), 0.01, tmp_path / "cache")
    assert cut == validation_cut(source_of(paths=paths), 0.01, tmp_path / "cache")
    assert len(reads) == 1
    (kept,) = (tmp_path / "cache").glob("sides-*.json")
    for damage in ("{", '{"both": true}', '{"both": 3}'):
        kept.write_text(damage if "true" not in damage else kept.read_text().replace("false", "true"))
        reads.clear()
        assert [validation_cut(source_of(paths=paths), 0.01, tmp_path / "cache") for _ in range(2)] == [cut] * 2
        assert len(reads) == 1
    validation_cut(source_of(paths=paths), 0.02, tmp_path / "cache")
    write(tmp_path / "1.txt", "another text " * 300)
    validation_cut(source_of(paths=paths), 0.02, tmp_path / "cache")
    assert len(reads) == 3
    (tmp_path / "full").write_text("no folder: nothing can be kept there")
    assert [validation_cut(source_of(paths=paths), 0.02, tmp_path / "full") is None for _ in range(2)] == [False] * 2
    assert len(reads) == 5


def test_a_second_preparation_reads_no_file_for_its_side(tmp_path, monkeypatch):
    paths = [str(write(tmp_path / f"{i}.txt", f"file {i} " * 300)) for i in range(3)]
    before = prepared_of(tmp_path, paths, validation_fraction=0.01)
    monkeypatch.setattr(held_out_files, "_read_on_both_sides", None)
    assert prepared_of(tmp_path, paths, validation_fraction=0.01).key == before.key


def test_many_files_are_held_out_as_wholes(tmp_path):
    for i in range(40):
        write(tmp_path / "many" / f"{i}.txt", f"text {i}")
    assert validation_cut(source_of(paths=[str(tmp_path / "many")]), 0.1) is None


def test_paths_of_a_resolved_recipe_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tokenizer.json", "{}")
    data = {
        "source": {"kind": "text", "paths": ["texts/**/*.txt", "~/mine", "/abs/x.txt"]},
        "validation_source": {"kind": "huggingface", "path": "owner/name"},
        "tokenizer": {"kind": "huggingface", "path": "tokenizer.json"},
        "cache_dir": "rows",
    }
    found = with_absolute_paths(DataConfig.model_validate(data))
    assert found.source.paths == [f"{tmp_path}/texts/**/*.txt", "~/mine", "/abs/x.txt"]
    assert found.validation_source.path == "owner/name"
    assert found.tokenizer.path == f"{tmp_path}/tokenizer.json"
    assert found.cache_dir == f"{tmp_path}/rows"
    assert with_absolute_paths(found) == found
    recipe = load_recipe({"name": "x", "extends": "zoo:tiny/full", "data": {"source": data["source"]}})
    assert json.loads(json.dumps(data_read(recipe)))["source"]["paths"][0] == f"{tmp_path}/texts/**/*.txt"


def test_a_row_says_whether_a_document_ends_with_it(tmp_path):
    """Documents of four bytes and their end, in rows of ten tokens and of eight."""
    path = str(write(tmp_path / "all.txt", "\n".join(f"a{i:03}" for i in range(400))))
    for seq_len, share in ((10, 1), (8, 5)):
        data = DataConfig.model_validate({"source": {"kind": "text", "paths": [path], "separator": "\n"}})
        made = prepare(data, max_seq_len=seq_len, vocab_size=300, seed=1, cache_dir=tmp_path / "cache", quiet=True)
        rows = list(stored_rows(made, "train"))[:40]
        assert [row.ends for row in rows] == [number % share == 0 for number in range(1, 41)]
        assert all(row.ends == (row.inputs[-1] == 256) for row in rows)
