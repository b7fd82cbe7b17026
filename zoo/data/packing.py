"""Documents to rows: tokenise, hold out, join, cut.  Imports no torch: tokenising processes start quickly.

The documents of a piece are joined, each followed by the end-of-document token, and cut every `seq_len` tokens into
rows of `seq_len + 1`: a row's last token is the next row's first, so every token is a target exactly once.  A piece's
last row may be shorter; the loader pads it.  Nothing is dropped.
"""

import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import xxhash
from pydantic import Field

from zoo.data.errors import DataError
from zoo.data.sources.pieces import Part, Piece
from zoo.data.tokenizers import GPT2_CUTTER, Bytes, Subwords, WordCounts
from zoo.data.words import GPT2_WORDS

SPLITS = ("train", "validation")
READ_TOKENS = 1 << 20
WRITE_BYTES = 1 << 20
PART_CHARACTERS = 1 << 18  # of text that is encoded at a time
COUNTED_BYTES = 1 << 23  # of text whose words are counted at a time, for learning a tokenizer
UNCUT_CHARACTERS = 1 << 20  # the most of one document without a safe place to cut
Tokenizer = Bytes | Subwords


class Cutter(Protocol):
    """What says where a long text can be cut: a tokenizer, or what stands for one that is not learnt yet."""

    def last_cut(self, text: str) -> int:
        """The last safe place inside a text; 0 if there is none."""


Size = Annotated[int, Field(ge=0)]  # checked where counts are read from a file


@dataclass
class Counts:
    """What a split holds.

    bytes: UTF-8 bytes of its documents, one more for each end; None if not known.  max_documents: the most documents
    in one row, where the padding of a short row counts as one; None if not known.
    """

    documents: Size = 0
    bytes: Size | None = 0
    tokens: Size = 0
    rows: Size = 0
    max_documents: Size | None = 0

    def __add__(self, other: "Counts") -> "Counts":
        size = None if self.bytes is None or other.bytes is None else self.bytes + other.bytes
        most = None
        if self.max_documents is not None and other.max_documents is not None:
            most = max(self.max_documents, other.max_documents)
        documents, tokens = self.documents + other.documents, self.tokens + other.tokens
        return Counts(documents, size, tokens, self.rows + other.rows, most)

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes that a token stands for, on average."""
        return self.bytes / self.tokens if self.bytes and self.tokens else None


@dataclass
class Packed:
    """One split of one piece: a file of its tokens in a row, and where documents begin among them."""

    path: Path
    kind: type
    starts: np.ndarray
    counts: Counts

    @property
    def tokens(self) -> np.ndarray:
        """All tokens, read at once."""
        return np.fromfile(self.path, self.kind)

    def rows(self, seq_len: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield rows of at most seq_len + 1 tokens, with the places where documents begin (place 0 always listed)."""
        step = max(1, READ_TOKENS // seq_len) * seq_len
        with self.path.open("rb") as file:
            for at in range(0, self.counts.tokens - 1, step):
                file.seek(at * np.dtype(self.kind).itemsize)
                yield from self._rows_of(np.fromfile(file, self.kind, step + 1), at, seq_len)

    def _rows_of(self, tokens: np.ndarray, at: int, seq_len: int) -> Iterator[dict[str, np.ndarray]]:
        begins = np.arange(0, len(tokens) - 1, seq_len)
        ends = np.minimum(begins + seq_len + 1, len(tokens))
        firsts = np.searchsorted(self.starts, at + begins + 1)
        lasts = np.searchsorted(self.starts, at + ends)
        for begin, end, first, last in zip(begins, ends, firsts, lasts, strict=True):
            starts = np.zeros(1 + last - first, np.uint32)
            starts[1:] = self.starts[first:last] - (at + begin)
            yield {"tokens": tokens[begin:end], "starts": starts}

    def max_documents(self, seq_len: int) -> int:
        """The most documents among the inputs (all but the last token) of one row, its padding counted as one."""
        places = self.counts.tokens - 1
        if places < 1:
            return 0
        inside = self.starts[(self.starts % seq_len > 0) & (self.starts < places)]
        rows, more = np.unique(inside // seq_len, return_counts=True)
        most = 1 + int(more.max(initial=0))
        if places % seq_len:  # the last row has padding
            last = more[rows == places // seq_len].sum()
            most = max(most, 2 + int(last))
        return most


class _Split:
    """A split while it is written."""

    def __init__(self, path: Path, kind: type):
        self.path, self.kind = path, kind
        self.starts = array("q")
        self.documents = self.bytes = self.tokens = 0
        self._file = path.open("wb", buffering=WRITE_BYTES)

    def add(self, tokens: np.ndarray, n_bytes: int) -> None:
        """Take a document whose tokens are in memory."""
        self.begin(n_bytes, len(tokens))
        self._file.write(tokens.data)

    def add_file(self, path: Path, n_bytes: int, n_tokens: int) -> None:
        """Take a document whose tokens are in a file."""
        self.begin(n_bytes, n_tokens)
        with path.open("rb") as file:
            shutil.copyfileobj(file, self._file, WRITE_BYTES)

    def begin(self, n_bytes: int, n_tokens: int) -> None:
        self.starts.append(self.tokens)
        self.documents += 1
        self.bytes += n_bytes
        self.tokens += n_tokens

    def finish(self) -> Packed:
        self._file.close()
        counts = Counts(self.documents, self.bytes, self.tokens)
        return Packed(self.path, self.kind, np.asarray(self.starts, np.int64), counts)


class _LongDocument:
    """A document that comes in several parts: its split is known when the hash of all of its text is."""

    def __init__(self, path: Path):
        self.path = path
        self.hash = xxhash.xxh64()
        self.bytes = self.tokens = 0
        self._file = path.open("wb")

    def add(self, data: bytes, tokens: np.ndarray) -> None:
        self.hash.update(data)
        self.bytes += len(data)
        self.tokens += len(tokens)
        self._file.write(tokens.data)

    def finish(self, end: np.ndarray) -> None:
        self.add(b"", end)
        self._file.close()


def held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation: decided by its text alone, so equal documents never part."""
    return _below(xxhash.xxh64_intdigest(text.encode()), fraction)


def _below(hash_: int, fraction: float) -> bool:
    return hash_ < fraction * 2**64


def pack(piece: Piece, folder: Path, *, tokenizer: Tokenizer, fraction: float) -> dict[str, Packed]:
    """Tokenise a piece into its two splits; empty documents are left out.

    Tokens are written to files in `folder`: memory does not grow with the piece, nor with its largest document.
    Raises DataError for a document of more than UNCUT_CHARACTERS that the tokenizer gives no place to cut.
    """
    kind, fraction = token_type(tokenizer.vocab_size), piece.share_held_out(fraction)
    end: np.ndarray = np.array([tokenizer.end_of_document], kind)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {name: _Split(folder / f"{name}.tokens", kind) for name in SPLITS}
    long: _LongDocument | None = None
    for batch in _batches(cut(piece, tokenizer)):
        tokens, lengths = tokenizer.encode_many([part.text for part, _ in batch], [begins for _, begins in batch])
        ends = np.cumsum(lengths).tolist()
        for (part, begins), first, last in zip(batch, [0, *ends[:-1]], ends, strict=True):
            data, numbers = part.text.encode(), tokens[first:last]
            if begins and part.last:
                if data:
                    held = _below(xxhash.xxh64_intdigest(data), fraction)
                    splits["validation" if held else "train"].add(np.concatenate([numbers, end]), len(data) + 1)
                continue
            long = long or _LongDocument(folder / "long.tokens")
            long.add(data, numbers)
            if part.last:
                long.finish(end)
                if long.bytes:
                    held = _below(long.hash.intdigest(), fraction)
                    splits["validation" if held else "train"].add_file(long.path, long.bytes + 1, long.tokens)
                long = None
    return {name: split.finish() for name, split in splits.items()}


def training_documents(all_pieces: Iterable[Piece], fraction: float, cutter: Cutter) -> Iterator[Iterable[str]]:
    """Yield the documents that are not held out, each as its parts, cut at safe places.

    A document of several parts is kept in a file until its end is known, and with it whether it is held out.
    """
    for piece in all_pieces:
        share = piece.share_held_out(fraction)
        with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as file:
            lengths: list[int] = []
            hash_ = xxhash.xxh64()
            for part, begins in cut(piece, cutter):
                if begins and part.last:
                    if not held_out(part.text, share):
                        yield (part.text,)
                    continue
                lengths.append(len(part.text))
                hash_.update(part.text.encode())
                file.write(part.text)
                if part.last:
                    if not _below(hash_.intdigest(), share):
                        file.seek(0)
                        yield map(file.read, lengths)
                    file.seek(0)
                    file.truncate()
                    lengths, hash_ = [], xxhash.xxh64()


def count_words(piece: Piece, folder: Path, *, fraction: float, most: float) -> tuple[dict[str, int], int]:
    """Count the words of a piece's training documents, for learning a byte-level BPE.

    most: bytes of text; the document that reaches it is the last.  Returns the words in the order in which they first
    occur, and the bytes.  Memory does not grow with the piece, which may be one large document: `WordCounts` bounds the
    words.  `folder` is not used: `pool.each` passes one to every work.
    """
    counts, words = WordCounts(), Counter[str]()
    size = added = 0
    for document in training_documents([piece], fraction, GPT2_CUTTER):
        for text in document:
            words.update(GPT2_WORDS.findall(text))
            size += len(text.encode())
            if size - added >= COUNTED_BYTES:
                counts.add(words)
                words, added = Counter(), size
        if size >= most:
            break
    counts.add(words)
    return counts.counts, size


def cut(piece: Piece, tokenizer: Tokenizer | Cutter) -> Iterator[tuple[Part, bool]]:
    """Yield (part, whether it begins a document), where parts end at safe places and are of bounded length."""
    held, begins = "", True
    for part in piece.parts():
        text, at = held + part.text, 0
        while len(text) - at > PART_CHARACTERS:
            length = tokenizer.last_cut(text[at : at + PART_CHARACTERS])
            if not length and len(text) - at > UNCUT_CHARACTERS:
                length = tokenizer.last_cut(text[at : at + UNCUT_CHARACTERS])
                if not length:
                    raise DataError(_uncut(piece.place(part.where)))
            if not length:
                break
            yield Part(text[at : at + length], False, part.where), begins
            at, begins = at + length, False
        held = text[at:]
        if part.last:
            yield Part(held, True, part.where), begins
            held, begins = "", True


def _uncut(place: str) -> str:
    return (
        f"{place}: more than {UNCUT_CHARACTERS:,} characters in which the tokenizer gives no safe place to cut, and "
        "it needs about 100 bytes of memory for each; cut the document (`separator` cuts text files), or use "
        "tokenizer `byte`"
    )


def _batches(parts: Iterator[tuple[Part, bool]]) -> Iterator[list[tuple[Part, bool]]]:
    batch, size = [], 0
    for part, begins in parts:
        batch.append((part, begins))
        size += len(part.text) + 1
        if size >= PART_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def token_type(vocab_size: int) -> type:
    """The integer type that holds the tokens on disk."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32
