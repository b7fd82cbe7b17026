import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zoo.data import DataError
from zoo.data import tokenizers as tokenizers_of_zoo
from zoo.data.config import BpeTokenizer, HuggingFaceTokenizer
from zoo.data.tokenizers import (
    END_OF_DOCUMENT_TEXT,
    Bytes,
    Subwords,
    encode_each,
    library_errors,
    load_huggingface,
    train_bpe,
)

TEXTS = [f"def attend(query_{i}, key, value): return 'naïve 注意 {i}'\n" * 5 for i in range(50)]
CONFIG = BpeTokenizer(kind="bpe", vocab_size=400)


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(CONFIG, TEXTS)


@pytest.fixture
def saved(bpe, tmp_path):
    bpe.save(tmp_path)
    return tmp_path


def huggingface(path: Path, **settings):
    return load_huggingface(HuggingFaceTokenizer(kind="huggingface", path=str(path), **settings))


def test_bytes_round_trip():
    tokens = Bytes().encode(TEXTS[0])
    assert tokens.tolist() == list(TEXTS[0].encode())
    assert Bytes().decode([*tokens, 256]) == TEXTS[0]


def test_bpe_round_trip_and_sizes(bpe):
    tokens = bpe.encode(TEXTS[0])
    assert bpe.decode(tokens) == TEXTS[0]
    assert len(tokens) < len(TEXTS[0].encode()) / 2
    assert bpe.vocab_size <= 400
    assert tokens.max() < bpe.vocab_size
    assert bpe.end_of_document not in tokens


def test_bpe_knows_every_byte(bpe):
    strange = "".join(map(chr, range(1, 0x300))) + "\U0001f600"
    assert bpe.decode(bpe.encode(strange)) == strange


def test_text_cannot_spell_the_end_of_a_document(bpe):
    text = "a<|end-of-document|>b"
    for tokenizer in (bpe, pickle.loads(pickle.dumps(bpe))):
        assert bpe.end_of_document not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bpe_is_the_same_with_any_number_of_threads(bpe, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_tokenizers as t\n"
        "print(t.train_bpe(t.CONFIG, t.TEXTS).identity)"
    )
    for threads in ("1", "4"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        command = [sys.executable, "-c", code, str(Path(__file__).parent)]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert found.strip() == bpe.identity


def test_saved_tokenizer_loads_from_folder_and_file(bpe, saved):
    assert huggingface(saved).identity == bpe.identity
    one = huggingface(saved / "tokenizer.json", end_of_document="<|end-of-document|>")
    assert one.end_of_document == bpe.end_of_document


def test_transformers_reads_the_saved_folder(bpe, saved):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    assert theirs.encode(TEXTS[3], add_special_tokens=False) == bpe.encode(TEXTS[3]).tolist()
    assert theirs.eos_token_id == bpe.end_of_document


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (None, "does not say which token ends a document; set data.tokenizer.end_of_document"),
        ("</s>", r"no token '</s>' in it; .*\(special ones: <\|end-of-document\|>\)"),
    ],
)
def test_unknown_end_of_document(saved, end, message):
    with pytest.raises(DataError, match=message):
        huggingface(saved / "tokenizer.json", end_of_document=end)


def test_eos_token_as_an_object(bpe, saved):
    (saved / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end-of-document|>"}}))
    assert huggingface(saved).end_of_document == bpe.end_of_document


@pytest.mark.parametrize("settings", ["{", "[]", '{"eos_token": {"text": "</s>"}}'])
def test_broken_settings_beside_a_tokenizer(saved, settings):
    (saved / "tokenizer_config.json").write_text(settings)
    with pytest.raises(DataError, match=r"tokenizer .*: not a tokenizer_config\.json: "):
        huggingface(saved)


def test_an_eos_token_that_is_no_text_is_as_none(saved):
    (saved / "tokenizer_config.json").write_text('{"eos_token": 5}')
    with pytest.raises(DataError, match="does not say which token ends a document"):
        huggingface(saved)


def test_not_a_tokenizer(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        huggingface(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="no such file"):
        huggingface(tmp_path)


def test_a_tokenizer_that_makes_the_library_panic_is_an_error_of_one_line(bpe, saved, capfd):
    settings = json.loads((saved / "tokenizer.json").read_text())
    settings["model"]["continuing_subword_prefix"] = "x"
    (saved / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=r"tokenizer .*: not a tokenizer\.json: ") as raised:
        huggingface(saved)
    assert type(raised.value.__cause__).__name__ == "PanicException"
    assert "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_only_what_the_library_raises_is_turned_into_an_error(error):
    with pytest.raises(error), library_errors("tokenizer x"):
        raise error


def test_a_tokenizer_that_is_a_pointer_of_git_lfs(saved):
    (saved / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n")
    with pytest.raises(DataError, match="Git LFS pointer"):
        huggingface(saved)


def test_damaged_tokenizers_never_raise_anything_else(bpe, saved):
    text = (saved / "tokenizer.json").read_text()
    rng = np.random.default_rng(5)
    errors = []
    for _ in range(100):
        at, length = rng.integers(len(text)), rng.integers(30)
        (saved / "tokenizer.json").write_text(text[:at] + chr(rng.integers(32, 127)) + text[at + length :])
        try:
            huggingface(saved)
        except DataError as error:
            errors.append(str(error))
    assert len(errors) > 50
    assert not any("\n" in error for error in errors)


AWKWARD = [
    "",
    " ",
    "ends in blanks  ",
    "\n\tend",
    "é ü 注意 \U0001f600",
    f"said {END_OF_DOCUMENT_TEXT} and </s> as text",
    "",
    "a\x00b",
    *TEXTS[:3],
    "word " * 400,
]


class Reversed(Subwords):
    """Defines `encode` alone anew, so that its `encode_many` is not its own."""

    def encode(self, text):
        return super().encode(text)[::-1]


class Plain:
    """A tokenizer of another package, without `encode_many`."""

    def encode(self, text):
        return [ord(character) for character in text]


@pytest.mark.parametrize("kind", ["bytes", "bpe", "no safe place", "encode anew", "plain"])
@pytest.mark.parametrize("at_once", [8, 1 << 20], ids=["in parts", "at once"])
def test_texts_encoded_together_have_the_tokens_of_each_alone(bpe, kind, at_once, monkeypatch):
    """Empty texts, blanks, special tokens spelt in the text, and several calls for many characters."""
    monkeypatch.setattr(tokenizers_of_zoo, "CHARACTERS_AT_ONCE", at_once)
    tokenizer = {
        "bytes": Bytes,
        "bpe": lambda: bpe,
        "no safe place": lambda: _without_safe_place(bpe),
        "encode anew": lambda: Reversed(bpe.text, bpe.end_of_document_text),
        "plain": Plain,
    }[kind]()
    wanted = [[int(number) for number in tokenizer.encode(text)] for text in AWKWARD]
    assert encode_each(tokenizer, AWKWARD) == wanted
    assert encode_each(tokenizer, []) == []
    assert encode_each(tokenizer, ["", ""]) == [[], []]


def _without_safe_place(bpe: Subwords) -> Subwords:
    settings = json.loads(bpe.text)
    settings["model"]["dropout"] = 0.0
    settings["pre_tokenizer"]["use_regex"] = False
    made = Subwords(json.dumps(settings), bpe.end_of_document_text)
    assert made._safe is None
    return made
