import pytest

from zoo.data import DataError, show_samples


def test_samples_show_text_and_where_documents_begin(prep, tmp_path):
    (tmp_path / "a.txt").write_text("first||second||third")
    source = {"kind": "text", "paths": [str(tmp_path / "a.txt")], "separator": "||"}
    prepared = prep({"source": source, "validation_fraction": 0})
    shown = show_samples(prepared, 1)
    assert shown.startswith(
        "== text train row 0 of 1: 19 tokens, 2 new documents\nfirst\n-- document begins --\nsecond\n"
    )
    assert shown.endswith("-- document begins --\nthird")


def test_as_many_samples_as_asked_from_all_sources(prep, corpus):
    text = {"kind": "text", "paths": [str(corpus)]}
    copy = {"kind": "synthetic", "task": "copy", "vocab_size": 40, "rows": 20, "validation_rows": 5}
    prepared = prep({"sources": [text, copy], "validation_fraction": 0.2})
    assert show_samples(prepared, 5).count("== ") == 5
    assert show_samples(prepared, 2).count("== text ") == show_samples(prepared, 2).count("== synthetic ") == 1
    assert "== synthetic validation row" in show_samples(prepared, 2, "validation")


def test_synthetic_samples_show_what_to_predict(prep):
    source = {"kind": "synthetic", "task": "copy", "vocab_size": 40, "span": 3, "rows": 20, "validation_rows": 5}
    shown = show_samples(prep({"source": source}), 1).splitlines()
    tokens = shown[1].split()
    assert shown[3:] == [f"  position {3 + i}: predict {tokens[i]}" for i in range(3)]


def test_nothing_to_show(prep, of_text):
    prepared = prep(of_text(validation_fraction=0))
    with pytest.raises(DataError, match="no validation rows to show"):
        show_samples(prepared, 1, "validation")
    with pytest.raises(DataError, match="split must be train or validation; found 'test'"):
        show_samples(prepared, 1, "test")
