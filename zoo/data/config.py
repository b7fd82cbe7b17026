"""The `data:` part of a recipe: where text comes from, how it becomes tokens, and how it is cut into rows.

Imports neither torch nor Streaming, so that a recipe is checked at once.  Paths are relative to the working directory
(not to the recipe file): a resolved recipe in a run folder, and `--set data.source.paths=...`, mean the same files.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from zoo.blocks.about import About
from zoo.blocks.checked import Fact, Facts, FieldProblem
from zoo.parts import SOURCES, TOKENIZERS, PartOf

END_OF_DOCUMENT_BYTE = 256
BYTE_VOCAB_SIZE = 257
Text = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    """Base of every piece of the data configuration: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # validators are made at first use


class Source(Part):
    """What every source has. One of another package subclasses `DocumentSource`, or names a `reader` of its own.

    A source of text states `reader`; one that holds tokens has rows that are made or read without it.
    """

    if TYPE_CHECKING:
        kind: str  # each has its own, with the name that a recipe writes as its only value

    about: ClassVar[About] = About()  # what its page in the documentation says beyond its fields
    holds_tokens: ClassVar[bool] = False  # rows of token numbers, which need no tokenizer
    can_hold_out: ClassVar[bool] = True  # whether a share of it can be held out for validation
    reader: ClassVar[str] = ""  # "package.module:Class" of a zoo.data.sources.base.Reader
    path_fields: ClassVar[tuple[str, ...]] = ()  # hold paths, which the recipe of a run has absolute
    path_or_name_fields: ClassVar[tuple[str, ...]] = ()  # the same, but of what is not there: a name on the Hub

    proportion: float | None = Field(
        None,
        gt=0,
        le=1e9,
        allow_inf_nan=False,
        description="Share of this source in a mixture, relative to the others; give it for all sources of a mixture "
        "or for none; without it each source counts by its size.",
    )

    def describe(self) -> str:
        """Where it reads, in a few words, for messages."""
        return ""

    def facts(self, d_model: int, seq_len: int, part: str | None = None) -> Facts:
        """What a source of another package is asked for; see `zoo.blocks.checked.Kinded.facts`."""
        yield Fact("describe", self.describe, (str,))

    def problems(self, *, seq_len: int, vocab_size: int) -> Iterator[FieldProblem]:
        """Yield (key path, message) for what disagrees with the model; called by `DataConfig.problems`."""
        yield from ()


class PythonStdlib(Source):
    """The standard library's own *.py files of the running interpreter: real text on every machine."""

    reader: ClassVar[str] = "zoo.data.sources.python_stdlib:StdlibReader"

    kind: Literal["python-stdlib"]
    tests: bool = Field(
        False, description="Also take the library's test suites (test, tests, idlelib/idle_test folders)."
    )


class Files(Source):
    """What the sources that read local files share."""

    path_fields: ClassVar[tuple[str, ...]] = ("paths",)

    paths: list[Text] = Field(
        min_length=1,
        description="Files, folders (every file below them that the kind reads) and globs (`**` crosses folders); "
        "relative to the working directory; `~` is the home folder.",
    )

    def describe(self) -> str:
        return ", ".join(self.paths)


class TextFiles(Files):
    """UTF-8 text, plain or .gz .zst .bz2 .lz4 .xz; one document a file, or several with `separator`.

    Of a folder the files with these extensions are read: .txt .text .md .rst .py .html .htm, or those of `extensions`.
    HTML is read as its text, without tags, scripts and styles.
    """

    reader: ClassVar[str] = "zoo.data.sources.text:TextReader"

    kind: Literal["text"]
    separator: Text | None = Field(
        None,
        description=r'Text that stands between documents of one file, such as "\n\n" or "<|endoftext|>"; '
        "absent: each file is one document.",
    )
    extensions: list[Annotated[str, Field(pattern=r"^\.[^./\s]+$")]] | None = Field(
        None,
        min_length=1,
        description="Extensions that are read of a folder, such as [.txt, .tex], in capitals or not. Default: .txt "
        ".text .md .rst .py .html .htm.",
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail",
        description="skip: leave out files that are empty, not UTF-8 or cannot be decompressed, and list them; fail: "
        "stop at the first.",
    )


class JsonLines(Files):
    """One JSON object a line, plain or .gz .zst .bz2 .lz4; one document an object."""

    reader: ClassVar[str] = "zoo.data.sources.json_lines:JsonLinesReader"

    kind: Literal["jsonl"]
    field: Text = Field("text", description="Key of the object that holds the document's text.")


class Parquet(Files):
    """Parquet files, one document a row."""

    reader: ClassVar[str] = "zoo.data.sources.parquet:ParquetReader"

    kind: Literal["parquet"]
    column: Text = Field("text", description="Column that holds the document's text.")


class HuggingFaceDataset(Source):
    """A dataset read by the `datasets` library: by its name on the Hub, or a local folder (works offline)."""

    reader: ClassVar[str] = "zoo.data.sources.huggingface:HubReader"
    path_or_name_fields: ClassVar[tuple[str, ...]] = ("path",)

    kind: Literal["huggingface"]
    path: Text = Field(description="Name on the Hub, or a local folder of data files.")
    config_name: Text | None = Field(None, description="Configuration (subset) of the dataset.")
    split: Text = Field("train", description="Split to read; slices such as `train[:10%]` work unless `streaming`.")
    field: Text = Field("text", description="Column that holds the document's text.")
    revision: Text | None = Field(
        None,
        description="Commit or tag on the Hub. Without it the shards made first are used until the cache is removed.",
    )
    streaming: bool = Field(False, description="Read over the network while tokenising, instead of downloading first.")
    max_documents: int | None = Field(None, ge=1, description="Stop after this many documents; absent: read all.")

    def describe(self) -> str:
        return f"{self.path} ({self.split})"


class DocumentSource(Source):
    """A source of text of another package.

    What reads is called as Class(config) and has `documents()`, an iterator of texts in a fixed order, and
    `fingerprint()`, a list of plain values that changes when the documents do: prepared rows are kept under it.
    """

    module: ClassVar[str]  # "package.module:Class" of what reads
    reader: ClassVar[str] = "zoo.data.sources.own_documents:OwnDocumentsReader"


class Mds(Source):
    """Ready MDS shards of tokens, made by this program or another.

    Rows have `seq_len + 1` tokens or more (the rest is cut), or exactly `seq_len`: then the last token has no target.
    """

    holds_tokens: ClassVar[bool] = True
    can_hold_out: ClassVar[bool] = False
    path_fields: ClassVar[tuple[str, ...]] = ("local",)

    kind: Literal["mds"]
    local: Text | None = Field(None, description="Folder with index.json; with `remote`: where shards are kept.")
    remote: Text | None = Field(
        None, description="URL of the shards (s3://, gs://, hf://, ..., or a folder to copy from)."
    )
    split: Text | None = Field(None, description="Subfolder of `local` and `remote`.")
    tokens_column: Text = Field("tokens", description="Column of token numbers.")
    labels_column: Text | None = Field(
        None, description="Column of targets (-100 = ignored), already shifted; absent: the next tokens."
    )
    bytes_dtype: Literal["uint16", "uint32", "int32", "int64"] = Field(
        "int64", description="Type of the numbers where the column holds plain bytes, as LLM Foundry writes them."
    )
    end_of_document: int | None = Field(
        None,
        ge=0,
        description="Token that ends a document; absent: a column `starts` if there is one, else one document a row.",
    )

    def describe(self) -> str:
        return "/".join(filter(None, (self.remote or self.local, self.split)))

    @model_validator(mode="after")
    def _has_a_place(self) -> "Mds":
        if self.local is None and self.remote is None:
            raise ValueError("state `local` (a folder with index.json), `remote` (a URL), or both")
        return self


class Synthetic(Source):
    """Rows made by rule, with labels on the answers only (docs: evaluation).  Token numbers need no tokenizer.

    mqar: `pairs` key-value pairs, then each key once more as a query, whose label is its value (arXiv 2312.04927).
    compositional_mqar: keys of two tokens; each token belongs to two keys, so that neither alone tells the value.
    forgetting_mqar: half of the keys are written twice, with another value; the last value is right.
    copy: `span` random tokens, a separator, the same tokens; loss on the second half.
    induction: `span` random tokens, `gap` filler tokens, the same tokens again; loss on the second half.
    """

    holds_tokens: ClassVar[bool] = True

    kind: Literal["synthetic"]
    task: Literal["mqar", "compositional_mqar", "forgetting_mqar", "copy", "induction"] = Field(
        description="Which task."
    )
    vocab_size: int = Field(8192, ge=8, description="Token numbers are below this; number 0 is filler or separator.")
    rows: int = Field(100_000, ge=1, description="Training rows.")
    validation_rows: int = Field(1_000, ge=1, description="Validation rows; none of them is among the training rows.")
    length: int | None = Field(
        None, ge=2, description="Tokens of the task in a row; the rest is padding. Default: the row (`seq_len`)."
    )
    pairs: int = Field(
        8,
        ge=1,
        description="mqar: keys (P); 4 P <= length. compositional_mqar: even, 5 P <= length. forgetting_mqar: "
        "with P // 2 keys written twice, 2 (P + P // 2) + 2 P <= length.",
    )
    power: float = Field(
        0.01, gt=0, le=1, description="The three mqar tasks: gaps g have probability proportional to g^(power - 1)."
    )
    filler: Literal["zeros", "random"] = Field(
        "zeros",
        description="All but copy: what fills the places between; `random` never uses the row's own tokens.",
    )
    span: int | None = Field(
        None,
        ge=1,
        description="copy, induction: length r of the repeated sequence. Default: as long as the row allows.",
    )
    gap: int = Field(0, ge=0, description="induction: tokens between the sequence and its repetition.")
    seed: int | None = Field(None, ge=0, description="Seed of the rows. Default: the recipe's.")

    def describe(self) -> str:
        return self.task

    def resolved_span(self, seq_len: int) -> int:
        """Length of the repeated sequence in rows of `seq_len` tokens."""
        length = self.length or seq_len
        between = 1 if self.task == "copy" else self.gap
        return self.span or (length - between) // 2

    def problems(self, *, seq_len: int, vocab_size: int) -> Iterator[FieldProblem]:
        length = self.length or seq_len
        if self.vocab_size > vocab_size:
            yield ("vocab_size",), f"must be at most model.vocab_size = {vocab_size}; found {self.vocab_size}"
        if length > seq_len:
            yield ("length",), f"must be at most seq_len = {seq_len}; found {length}"
        recall = self.task.endswith("mqar")
        yield from self._mqar_problems(length) if recall else self._repeat_problems(length, seq_len)

    @property
    def written(self) -> int:
        """The mqar tasks: tokens of the part that writes the keys and their values."""
        rewritten = self.pairs // 2 if self.task == "forgetting_mqar" else 0
        return 3 * self.pairs if self.task == "compositional_mqar" else 2 * (self.pairs + rewritten)

    def _mqar_problems(self, length: int) -> Iterator[FieldProblem]:
        if length % 2:
            yield ("length",), f"{self.task} needs an even number of tokens; found {length}"
        if self.vocab_size <= length:
            yield ("vocab_size",), f"{self.task} needs more than the row's {length} tokens; found {self.vocab_size}"
        if self.written + 2 * self.pairs > length:
            need = f"{self.written} tokens for its keys and {2 * self.pairs} for its queries"
            yield ("pairs",), f"{self.task} needs {need}, of {length}; found pairs = {self.pairs}"
        if self.task == "compositional_mqar" and (self.pairs % 2 or self.pairs < 4):
            yield ("pairs",), f"{self.task} needs an even number of pairs from 4; found pairs = {self.pairs}"

    def _repeat_problems(self, length: int, seq_len: int) -> Iterator[FieldProblem]:
        span = self.resolved_span(seq_len)
        between = 1 if self.task == "copy" else self.gap
        least = 1 if self.task == "copy" else 2
        if span < least or 2 * span + between > length:
            need = f"{self.task} needs span >= {least} and 2 * span + {between} <= {length} tokens"
            yield ("span",), f"{need}; found span = {span}"
        if self.task == "induction" and self.filler == "random" and self.gap and self.vocab_size < span + 2:
            yield ("vocab_size",), f"random filler needs a token outside the row's {span}; found {self.vocab_size}"


AnySource = Annotated[Source, PartOf(SOURCES)]


class TokenizerConfig(Part):
    """How text becomes tokens, as a recipe writes it.

    One of another package states `module`, "package.module:function". The function is called with the config and
    returns a `zoo.data.tokenizers.Subwords`, whose files go with the weights.
    """

    if TYPE_CHECKING:
        kind: str  # each has its own, with the name that a recipe writes as its only value

    about: ClassVar[About] = About()  # what its page in the documentation says beyond its fields
    module: ClassVar[str] = ""  # of what makes it; the zoo's own are made where data are prepared
    is_trained: ClassVar[bool] = False  # on the text of the recipe's sources
    path_fields: ClassVar[tuple[str, ...]] = ()  # as of a source
    path_or_name_fields: ClassVar[tuple[str, ...]] = ()

    def known_vocab_size(self) -> int | None:
        """Token numbers this tokenizer uses, None where only loading it tells."""
        return None

    def facts(self, d_model: int, seq_len: int, part: str | None = None) -> Facts:
        """What a tokenizer of another package is asked for; see `zoo.blocks.checked.Kinded.facts`."""
        yield Fact("known_vocab_size", self.known_vocab_size, (int, type(None)))


class ByteTokenizer(TokenizerConfig):
    """UTF-8 bytes 0..255, and 256 for the end of a document."""

    kind: Literal["byte"]

    def known_vocab_size(self) -> int | None:
        """Token numbers this tokenizer uses, None where only loading it tells."""
        return BYTE_VOCAB_SIZE


class BpeTokenizer(TokenizerConfig):
    """Byte-level BPE, trained on the recipe's own training documents; the same text gives the same tokens."""

    is_trained: ClassVar[bool] = True

    kind: Literal["bpe"]
    vocab_size: int = Field(
        4096, ge=257, le=1_000_000, description="Tokens, 256 bytes and the end of document included."
    )
    min_frequency: int = Field(2, ge=1, description="A pair seen less often is not merged.")
    training_bytes: int = Field(
        100_000_000,
        ge=1_000,
        description="Bytes of text to learn merges from, in total; each source is read from its beginning.",
    )

    def known_vocab_size(self) -> int | None:
        """Token numbers this tokenizer uses, None where only loading it tells."""
        return self.vocab_size


class HuggingFaceTokenizer(TokenizerConfig):
    """A tokenizer by its name on the Hub, a local folder, or a local tokenizer.json."""

    path_or_name_fields: ClassVar[tuple[str, ...]] = ("path",)

    kind: Literal["huggingface"]
    path: Text = Field(description="Name on the Hub, local folder, or local tokenizer.json.")
    revision: Text | None = Field(None, description="Commit or tag on the Hub.")
    end_of_document: Text | None = Field(
        None, description="Token that ends a document. Default: the tokenizer's own end-of-sequence token."
    )

    def known_vocab_size(self) -> int | None:
        """Token numbers this tokenizer uses, None where only loading it tells."""
        return None


AnyTokenizer = Annotated[TokenizerConfig, PartOf(TOKENIZERS)]


class DataConfig(Part):
    """The `data:` part of a recipe."""

    seq_len: int | None = Field(None, ge=1, description="Tokens of a row. Default: model.max_seq_len.")
    source: AnySource | None = Field(None, description="Where rows come from. Default: {kind: python-stdlib}.")
    sources: list[AnySource] | None = Field(None, min_length=1, description="A mixture, in place of `source`.")
    tokenizer: AnyTokenizer | None = Field(
        None,
        description="How text becomes tokens. Default: {kind: byte}; sources that hold tokens already (mds, "
        "synthetic) need none, and are shown as numbers without one.",
    )
    validation_fraction: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Share of documents held out, chosen by the hash of a document's text, so that equal documents "
        "are on one side; 0: no validation rows.",
    )
    validation_source: AnySource | None = Field(
        None, description="Validation rows come from here; nothing is held out of the other sources."
    )
    shuffle: bool = Field(True, description="Shuffle training rows, anew each epoch, by the recipe's seed.")
    workers: int | None = Field(
        None, ge=1, le=1024, description="Processes that tokenise. Default: one a CPU core (bytes: one)."
    )
    cache_dir: Text | None = Field(
        None,
        description="Where prepared rows are kept. Default: $ZOO_DATA_CACHE, else data_cache in the working directory.",
    )

    @model_validator(mode="before")
    @classmethod
    def _source_or_sources(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("source") is not None and values.get("sources") is not None:
            raise ValueError("state `source` or `sources`, not both (`source: null` drops an inherited one)")
        return values

    @model_validator(mode="after")
    def _proportions(self) -> "DataConfig":
        stated = [s.proportion is not None for s in self.streams()]
        if any(stated) and not all(stated):
            raise ValueError("either every source of a mixture states its `proportion`, or none does")
        return self

    def streams(self) -> list[Source]:
        """The training sources, one or several."""
        return self.sources or [self.source or PythonStdlib(kind="python-stdlib")]

    def text_streams(self) -> list[Source]:
        """The training sources that need a tokenizer."""
        return [s for s in self.streams() if not s.holds_tokens]

    def resolved_tokenizer(self) -> TokenizerConfig | None:
        """The tokenizer in use: the one stated, else bytes where there is text, else None (rows are numbers)."""
        text = self.text_streams() or (self.validation_source and not self.validation_source.holds_tokens)
        return self.tokenizer or (ByteTokenizer(kind="byte") if text else None)

    def problems(self, *, vocab_size: int, max_seq_len: int) -> list[FieldProblem]:
        """What disagrees with the model, as (key path below `data`, message); empty if nothing does."""
        found: list[FieldProblem] = []
        if self.seq_len is not None and self.seq_len > max_seq_len:
            found.append((("seq_len",), f"must be at most model.max_seq_len = {max_seq_len}; found {self.seq_len}"))
        tokenizer = self.resolved_tokenizer()
        needed = tokenizer.known_vocab_size() if tokenizer else None
        if tokenizer is not None and needed is not None and needed > vocab_size:
            found.append((self._tokenizer_key(), self._vocab_message(tokenizer, needed, vocab_size)))
        for path, source in self._sources_by_key():
            checks = source.problems(seq_len=self.seq_len or max_seq_len, vocab_size=vocab_size)
            found += [(path + key, message) for key, message in checks]
        return found + self._combination_problems(tokenizer)

    def _combination_problems(self, tokenizer: TokenizerConfig | None) -> list[FieldProblem]:
        found: list[FieldProblem] = []
        if tokenizer and tokenizer.is_trained and not self.text_streams():
            found.append(
                (("tokenizer",), f"{tokenizer.kind} is trained on the source's text, and no source here has any")
            )
        if self.validation_fraction and not self.validation_source and not any(s.can_hold_out for s in self.streams()):
            message = "rows of ready shards are not held out: state `validation_source`, or `validation_fraction: 0`"
            found.append((("validation_fraction",), message))
        alike = [source.model_copy(update={"proportion": None}) for source in self.sources or ()]
        for i, source in enumerate(alike):
            if source in alike[:i]:  # Streaming takes a folder of shards once
                message = f"is the same as sources[{alike.index(source)}]; state it once, with a larger proportion"
                found.append((("sources", i), message))
        return found

    def _tokenizer_key(self) -> tuple[str, ...]:
        return ("tokenizer",) if self.tokenizer else ()

    @staticmethod
    def _vocab_message(tokenizer: TokenizerConfig, needed: int, vocab_size: int) -> str:
        need = f"the {tokenizer.kind} tokenizer uses {needed} tokens"
        return f"{need}; model.vocab_size must be at least {needed}, found {vocab_size}"

    def _sources_by_key(self) -> Iterator[tuple[tuple[str | int, ...], Source]]:
        if self.sources:
            yield from ((("sources", i), s) for i, s in enumerate(self.sources))
        elif self.source:
            yield ("source",), self.source
        if self.validation_source:
            yield ("validation_source",), self.validation_source
