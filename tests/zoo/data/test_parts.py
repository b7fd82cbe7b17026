"""A source and a tokenizer of another package, from the recipe to rows and back to text."""

import re
import sys
import types
from typing import ClassVar, Literal

import pytest
from pydantic import Field

from zoo.blocks import register
from zoo.blocks.making import PartError
from zoo.data import prepare_for
from zoo.data.config import BpeTokenizer, DocumentSource, Source, TokenizerConfig
from zoo.data.errors import DataError
from zoo.data.sources.base import Reader
from zoo.data.tokenizers import Bytes, train_bpe
from zoo.errors import RecipeError
from zoo.parts import SOURCES, TOKENIZERS
from zoo.recipe import load_recipe

RECIPE = """\
name: told
model:
  d_model: 16
  vocab_size: 300
  max_seq_len: 32
  ffn: {d_ff: 8}
  blocks: {full: {kind: full, n_heads: 2}}
  layers: full
data:
  source: {kind: counting, n_documents: 40}
"""


class Counting(DocumentSource):
    """Documents that count."""

    module: ClassVar[str] = "zoo_told:CountingReader"

    kind: Literal["counting"] = Field("counting", description="Counts.")
    n_documents: int = Field(10, ge=1, description="Documents.")

    def describe(self) -> str:
        return f"to {self.n_documents}"


class CountingReader:
    def __init__(self, config: Counting):
        self.config = config

    def documents(self):
        for number in range(self.config.n_documents):
            yield f"document {number}: " + " ".join(map(str, range(number)))

    def fingerprint(self) -> list:
        return [self.config.n_documents]


class Rows(Source):
    """A source that is neither text of documents nor one of the zoo's."""

    kind: Literal["rows"] = Field("rows", description="Rows.")


class Digits(TokenizerConfig):
    """A tokenizer of another package."""

    module: ClassVar[str] = "zoo_told:make_digits"

    kind: Literal["digits"] = Field("digits", description="Trained on digits.")
    vocab_size: int = Field(280, ge=257, description="Tokens.")

    def known_vocab_size(self) -> int:
        return self.vocab_size


def make_digits(config: Digits):
    settings = BpeTokenizer(kind="bpe", vocab_size=config.vocab_size, min_frequency=1)
    return train_bpe(settings, [" ".join(map(str, range(200)))])


@pytest.fixture
def path(monkeypatch, tmp_path):
    module = types.ModuleType("zoo_told")
    for part in (Counting, CountingReader, Rows, Digits, make_digits):
        setattr(module, part.__name__, part)
    monkeypatch.setitem(sys.modules, "zoo_told", module)
    for family in (SOURCES, TOKENIZERS):
        monkeypatch.setattr(family, "own", dict(family.own))
    register("counting", "zoo_told:Counting", family="sources")
    register("rows", "zoo_told:Rows", family="sources")
    register("digits", "zoo_told:Digits", family="tokenizers")
    monkeypatch.setenv("ZOO_DATA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "told.yaml").write_text(RECIPE)
    return tmp_path / "told.yaml"


def test_documents_become_rows_and_are_found_again(path):
    recipe = load_recipe(path)
    prepared = prepare_for(recipe)
    counts = [prepared.streams[split][0].counts for split in prepared.streams]
    assert sum(each.documents for each in counts) == 40
    expected = sum(len(text.encode()) for text in CountingReader(recipe.data.source).documents())
    assert sum(each.bytes for each in counts) == expected + 40  # the end of each document counts as one
    again = prepare_for(load_recipe(path))
    assert again.streams["train"][0].folder == prepared.streams["train"][0].folder
    other = prepare_for(load_recipe(path, ["data.source.n_documents=41"]))
    assert other.streams["train"][0].folder != prepared.streams["train"][0].folder


def test_its_tokenizer_serves_the_rows(path):
    recipe = load_recipe(path, ["data.tokenizer={kind: digits, vocab_size: 290}"])
    prepared = prepare_for(recipe)
    assert prepared.tokenizer.vocab_size == 290
    assert prepared.tokenizer.decode(prepared.tokenizer.encode("12 13")) == "12 13"
    assert isinstance(prepare_for(load_recipe(path)).tokenizer, Bytes)
    with pytest.raises(
        RecipeError, match=r"the digits tokenizer uses 301 tokens; model.vocab_size must be at least 301"
    ):
        load_recipe(path, ["data.tokenizer={kind: digits, vocab_size: 301}"])


def test_mistakes_are_named(path):
    for old, new, why in (
        ("counting", "countin", "data.source.kind: unknown kind 'countin'; known: python-stdlib, text,"),
        ("n_documents: 40", "n_documents: 0", "data.source.n_documents: must be at least 1; found 0"),
        (
            "n_documents",
            "documents",
            "data.source.documents: unknown key 'documents'; known: proportion, kind, n_documents",
        ),
        ("{kind: counting, n_documents: 40}", "{n_documents: 40}", "data.source.kind: is required"),
        ("{kind: counting, n_documents: 40}", "counting", "data.source: must be a mapping; found 'counting'"),
    ):
        path.write_text(RECIPE.replace(old, new))
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert why in str(caught.value)
    path.write_text(RECIPE.replace("{kind: counting, n_documents: 40}", "{kind: rows}"))
    with pytest.raises(DataError, match=r"source rows: Rows must be a zoo\.data\.config\.DocumentSource"):
        prepare_for(load_recipe(path))


class Half(Reader):
    def files(self) -> list:
        return []


@pytest.mark.parametrize(
    ("reader", "why"),
    [
        (Half, "source rows: Half must define pieces"),
        (CountingReader, "source 'rows': zoo_told:Made must make a zoo.data.sources.base.Reader; found CountingReader"),
    ],
)
def test_a_reader_that_cannot_read_is_one_line(path, monkeypatch, reader, why):
    monkeypatch.setattr(sys.modules["zoo_told"], "Made", reader, raising=False)
    monkeypatch.setattr(Rows, "reader", "zoo_told:Made")
    path.write_text(RECIPE.replace("{kind: counting, n_documents: 40}", "{kind: rows}"))
    with pytest.raises((DataError, PartError), match=re.escape(why)):
        prepare_for(load_recipe(path))
