"""What names the content of prepared data and of a tokenizer, for a run folder to keep.  Imports no torch.

The cache of preparation is keyed by names, sizes and times of files, which change when a file is copied.  Here rows are
named by the hashes of their shards and a tokenizer by its parts: equal content gives an equal record on every machine.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

import zoo
from zoo.data.config import (
    BpeTokenizer,
    ByteTokenizer,
    DataConfig,
    HuggingFaceTokenizer,
    Mds,
    Source,
    Synthetic,
)
from zoo.data.packing import Tokenizer
from zoo.data.prepared import PreparedData, RowStream
from zoo.data.preparing import FORMAT, digest
from zoo.data.shards import read_index
from zoo.data.sources import fingerprint
from zoo.data.tokenizers import Subwords, load_huggingface, own_tokenizer
from zoo.errors import Problem, first_mistake, shorten
from zoo.files import FileError, open_file, read_json

SPLIT_NAMES = {"train": "training", "validation": "validation"}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # keys of a later version are left aside


class TokenizerRecord(_Record):
    """A tokenizer: `parts` holds a hash for each of vocabulary, merges, special tokens, text splitting and template."""

    kind: str
    vocab_size: int
    end_of_document: str | int
    parts: dict[str, str] = {}

    def other_than(self, before: "TokenizerRecord") -> list[str]:
        """The parts that differ, in words."""
        names = [*before.parts, *(name for name in self.parts if name not in before.parts)]
        found = [name for name in names if before.parts.get(name) != self.parts.get(name)]
        if self.end_of_document != before.end_of_document:
            found.append("end of document")
        if self.kind != before.kind or (self.vocab_size != before.vocab_size and not found):
            found.append("kind" if self.kind != before.kind else "size of the vocabulary")
        return found


class SourceRecord(_Record):
    """The rows of one source in one split.

    key: of the recipe.  content: hash of the rows' shards.  stamp: hash of the names, sizes and times of the files, by
    which unchanged data are known without preparing them; None where the rows themselves are as quick to look at.
    """

    key: str
    source: str
    documents: int
    bytes: int | None
    tokens: int
    rows: int
    content: str
    stamp: str | None = None

    @property
    def size(self) -> str:
        """Documents and bytes, or rows where the text is not known."""
        return f"{self.rows:,} rows" if self.bytes is None else f"{self.documents:,} documents, {self.bytes:,} bytes"


class InitRecord(_Record):
    """The weights that a run began with: the folder, as its recipe names it, and the SHA-256 of the file."""

    source: str
    sha256: str


class DataRecord(_Record):
    """What a run was trained on, and from: data.json of its folder.

    run: a random id that the run's checkpoints repeat; None in runs of earlier versions and for data alone.
    """

    version: str
    run: str | None = None
    format: int
    seq_len: int
    tokenizer: TokenizerRecord | None
    train: list[SourceRecord]
    validation: list[SourceRecord]
    init_from: InitRecord | None = None

    @classmethod
    def of(cls, prepared: PreparedData, read_files: bool = True, run: str | None = None) -> "DataRecord":
        """The record of prepared data, for a run of this id.

        read_files: also hash local MDS shards whose index states no hash, which reads them whole.
        """
        streams = {
            split: [_source_record(prepared, stream, read_files) for stream in prepared.streams[split]]
            for split in SPLIT_NAMES
        }
        config = prepared.config.resolved_tokenizer()
        used = None
        if config is not None and prepared.tokenizer is not None:
            used = tokenizer_record(config.kind, prepared.tokenizer)
        return cls(version=zoo.__version__, run=run, format=FORMAT, seq_len=prepared.seq_len, tokenizer=used, **streams)

    @classmethod
    def read(cls, path: Path) -> "DataRecord":
        """Read data.json.  Raises FileError if it is damaged, or lacks what this version writes."""
        try:
            return cls.model_validate_json(json.dumps(read_json(path, "bring it back")), strict=True)
        except ValidationError as error:
            raise FileError(
                f"{path}: damaged, or written by another version than {zoo.__version__}: {first_mistake(error)}"
            ) from error

    @property
    def digest(self) -> str:
        """A hash of all content of the data."""
        stamps = {split: {"__all__": {"stamp"}} for split in SPLIT_NAMES}
        left_out: Any = {"version": True, "run": True, "init_from": True, **stamps}
        return digest(self.model_dump(exclude=left_out))

    @property
    def rows_digest(self) -> str:
        """A hash of the tokens of all rows and of the tokenizer, wherever the text lies."""
        used = self.tokenizer and self.tokenizer.model_dump()
        return digest([self.seq_len, used, self._text(by_rows=True)])

    def is_of(self, data: DataConfig) -> bool:
        """Whether the files that `data` names, and a tokenizer that is not learnt from them, are untouched.

        False where only preparing them tells.  Raises DataError if they are missing.
        """
        stamps = {record.key: record.stamp for split in SPLIT_NAMES for record in getattr(self, split)}
        for source in (*data.streams(), *filter(None, (data.validation_source,))):
            stamp = _stamp(source)
            if stamp is None or stamp != stamps.get(_key(data, source)):
                return False
        config = data.resolved_tokenizer()
        if config is None or isinstance(config, ByteTokenizer | BpeTokenizer):
            return True
        used = load_huggingface(config) if isinstance(config, HuggingFaceTokenizer) else own_tokenizer(config)
        return not _other_tokenizer(tokenizer_record(config.kind, used), self.tokenizer)

    def differences(self, before: "DataRecord", run: Path) -> list[Problem]:
        """One problem for the tokenizer and one for each source whose rows are not those of `before`, the record of
        the run folder `run`; empty if all content is the same."""
        found = []
        known = self.tokenizer or before.tokenizer
        if known is not None and (other := _other_tokenizer(self.tokenizer, before.tokenizer)):
            found.append(_tokenizer_problem(known, other, run))
        found += self._other_sources(before, run, same_tokenizer=not found)
        if found and self.format != before.format:
            why = f"rows were prepared by version {before.version}, and version {self.version} may cut other rows"
            found.append(Problem(why, key="data"))
        return found

    def same_tokenizer(self, other: "DataRecord") -> bool:
        """Whether two runs have the same tokenizer, part by part."""
        return not _other_tokenizer(self.tokenizer, other.tokenizer)

    def same_rows(self, other: "DataRecord") -> bool:
        """Whether two runs read rows of the same tokens, source by source."""
        alike = self.seq_len == other.seq_len and self.same_tokenizer(other)
        return alike and self._text(by_rows=True) == other._text(by_rows=True)

    def same_text(self, other: "DataRecord") -> bool:
        """Whether two runs read the same text, as far as the records tell.

        By the rows where tokenizer and length are the same, else by the number of documents and bytes.
        """
        alike = self.seq_len == other.seq_len and self.same_tokenizer(other)
        return self._text(alike) == other._text(alike)

    def _text(self, by_rows: bool) -> list:
        return [
            [s.content if by_rows or s.bytes is None else (s.documents, s.bytes) for s in getattr(self, split)]
            for split in SPLIT_NAMES
        ]

    def _other_sources(self, before: "DataRecord", run: Path, same_tokenizer: bool) -> Iterator[Problem]:
        ours, theirs = self._by_key(), before._by_key()
        for key in dict.fromkeys([*theirs, *ours]):
            pairs = {split: (theirs.get(key, {}).get(split), ours.get(key, {}).get(split)) for split in SPLIT_NAMES}
            other = {split: pair for split, pair in pairs.items() if _differ(*pair, same_tokenizer)}
            if other:
                named = next(record for pair in other.values() for record in reversed(pair) if record)
                sizes = "; ".join(f"{SPLIT_NAMES[split]}: {_sizes(*pair)}" for split, pair in other.items())
                why = f"{named.source}: not the data that {run} was trained on: {sizes}"
                yield Problem(why, key=key)

    def _by_key(self) -> dict[str, dict[str, SourceRecord]]:
        found: dict[str, dict[str, SourceRecord]] = {}
        for split in SPLIT_NAMES:
            for record in getattr(self, split):
                found.setdefault(record.key, {})[split] = record
        return found


def tokenizer_record(kind: str, tokenizer: Tokenizer) -> TokenizerRecord:
    """The record of a tokenizer that the recipe calls `kind`."""
    if not isinstance(tokenizer, Subwords):
        return TokenizerRecord(
            kind=kind, vocab_size=tokenizer.vocab_size, end_of_document=tokenizer.end_of_document, parts={}
        )
    content = json.loads(tokenizer.text)
    model = dict(content["model"])
    vocabulary, merges = model.pop("vocab"), model.pop("merges", None)
    splitting = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")}
    parts = {
        "vocabulary": vocabulary,
        # "a b" in files of older versions of the library, ["a", "b"] in later ones
        "merges": [m.split(" ", 1) if isinstance(m, str) else m for m in merges or ()],
        "special tokens": content.get("added_tokens"),
        "text splitting": [splitting, {name: value for name, value in model.items() if value}],
        "template": content.get("post_processor"),
    }
    return TokenizerRecord(
        kind=kind,
        vocab_size=tokenizer.vocab_size,
        end_of_document=tokenizer.end_of_document_text,
        parts={name: digest(part) for name, part in parts.items()},
    )


def _other_tokenizer(now: TokenizerRecord | None, before: TokenizerRecord | None) -> list[str]:
    if now is None or before is None:
        return [] if now is before else ["kind"]
    return now.other_than(before)


def _tokenizer_problem(now: TokenizerRecord, other: list[str], run: Path) -> Problem:
    why = {"bpe": "it was learnt anew from other text", "huggingface": "its file was replaced"}.get(now.kind)
    message = f"not the {now.kind} tokenizer that {run} was trained with: other {', '.join(other)}"
    return Problem(message + (f"; {why}" if why else ""), key="data.tokenizer")


def _differ(before: SourceRecord | None, now: SourceRecord | None, same_tokenizer: bool) -> bool:
    if before is None or now is None:
        return before is not now
    if not same_tokenizer and None not in (before.bytes, now.bytes):  # other tokens of the same text are other rows
        return (before.documents, before.bytes) != (now.documents, now.bytes)
    return before.content != now.content


def _sizes(before: SourceRecord | None, now: SourceRecord | None) -> str:
    sizes = [record.size if record else "no rows" for record in (before, now)]
    return f"other content in {sizes[0]}" if sizes[0] == sizes[1] else f"{sizes[0]} then, {sizes[1]} now"


def _source_record(prepared: PreparedData, stream: RowStream, read_files: bool) -> SourceRecord:
    counts = stream.counts
    return SourceRecord(
        key=_key(prepared.config, stream.source),
        source=describe(stream.source),
        documents=counts.documents,
        bytes=counts.bytes,
        tokens=counts.tokens,
        rows=counts.rows,
        content=_content(stream, read_files),
        stamp=_stamp(stream.source),
    )


def _stamp(source: Source) -> str | None:
    if isinstance(source, Mds):
        return None
    files = [] if isinstance(source, Synthetic) else fingerprint(source)
    return digest([FORMAT, source.model_dump(mode="json"), files])


def _key(data: DataConfig, source: Source) -> str:
    """The key of the recipe that names a source; that of the default one is `data.source` too."""
    if data.sources and source in data.sources:
        return f"data.sources[{data.sources.index(source)}]"
    return "data.validation_source" if source == data.validation_source else "data.source"


def describe(source: Source) -> str:
    """A source in a few words: its kind and where it reads."""
    place = source.describe()
    return f"{source.kind} {place if len(place) <= 80 else shorten(place, 80)[1:-1]}".rstrip()


def _content(stream: RowStream, read_files: bool) -> str:
    found = []
    for shard in read_index(stream.folder):
        raw = shard["raw_data"]
        hashes = raw.get("hashes") or (shard.get("zip_data") or {}).get("hashes")
        if not hashes and read_files and not stream.remote:
            file = (shard.get("zip_data") or raw)["basename"]
            hashes = {"file": _hash_of_file(stream.folder / file)}
        found.append([shard["samples"], raw["bytes"], hashes or None])
    return digest(found)


def _hash_of_file(path: Path) -> str | None:
    """The hash of a shard, None if it is not there; checking the shards before training says so."""
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, cast(Any, xxhash.xxh64)).hexdigest()
    except (OSError, FileError):
        return None
