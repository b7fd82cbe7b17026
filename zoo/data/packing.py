"""Documents to rows: tokenise, hold out, join, cut.  Imports no torch: tokenising processes start quickly.

The documents of a piece are joined, each followed by the end-of-document token, and cut every `seq_len` tokens into
rows of `seq_len + 1`: a row's last token is the next row's first, so every token is a target exactly once.  A piece's
last row may be shorter; the loader pads it.  Nothing is dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import xxhash
from pydantic import Field

from zoo.data.sources import Piece, texts
from zoo.data.tokenizers import Bytes, Subwords

SPLITS = ("train", "validation")
Tokenizer = Bytes | Subwords

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
        most = (
            None if None in (self.max_documents, other.max_documents) else max(self.max_documents, other.max_documents)
        )
        documents, tokens = self.documents + other.documents, self.tokens + other.tokens
        return Counts(documents, size, tokens, self.rows + other.rows, most)

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes that a token stands for, on average."""
        return self.bytes / self.tokens if self.bytes and self.tokens else None


@dataclass
class Packed:
    """One split of one piece: its tokens in a row, and where documents begin among them."""

    tokens: np.ndarray
    starts: np.ndarray
    counts: Counts

    def rows(self, seq_len: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield rows of at most seq_len + 1 tokens, with the places where documents begin (place 0 always listed)."""
        for begin in range(0, len(self.tokens) - 1, seq_len):
            row = self.tokens[begin : begin + seq_len + 1]
            first, last = np.searchsorted(self.starts, [begin + 1, begin + len(row)])
            starts = np.concatenate([[0], self.starts[first:last] - begin]).astype(np.uint32)
            yield {"tokens": row, "starts": starts}

    def max_documents(self, seq_len: int) -> int:
        """The most documents among the inputs (all but the last token) of one row, its padding counted as one."""
        places = len(self.tokens) - 1
        if places < 1:
            return 0
        begins = np.union1d(self.starts, np.arange(0, places, seq_len))
        in_row = np.bincount(begins // seq_len)
        in_row[-1] += places % seq_len > 0
        return int(in_row.max())


@dataclass
class _Split:
    parts: list[np.ndarray] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


def held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation: decided by its text alone, so equal documents never part."""
    return xxhash.xxh64_intdigest(text.encode()) < fraction * 2**64


def pack(piece: Piece, tokenizer: Tokenizer, fraction: float) -> dict[str, Packed]:
    """Tokenise a piece into its two splits; empty documents are left out."""
    splits = {name: _Split() for name in SPLITS}
    end = np.array([tokenizer.end_of_document], token_type(tokenizer.vocab_size))
    for text in texts(piece):
        if not text:
            continue
        split = splits["validation" if held_out(text, fraction) else "train"]
        tokens = tokenizer.encode(text)
        split.starts.append(split.counts.tokens)
        split.parts += [tokens, end]
        split.counts += Counts(1, len(text.encode()) + 1, len(tokens) + 1)
    return {name: Packed(_joined(s.parts, end), np.asarray(s.starts), s.counts) for name, s in splits.items()}


def token_type(vocab_size: int) -> type:
    """The integer type that holds the tokens on disk."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _joined(parts: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    return np.concatenate(parts) if parts else like[:0]
