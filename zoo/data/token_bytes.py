"""Bytes of text that each token stands for: bits per byte divide by those of the scored tokens alone.  No torch.

The end of a document counts as one byte, so that the byte tokenizer has 1.0 and others are measured on the same bytes.
"""

import json
import re
from typing import Any

import numpy as np

from zoo.data.config import Synthetic
from zoo.data.packing import Tokenizer
from zoo.data.prepared import PreparedData
from zoo.data.stored import samples
from zoo.data.tokenizers import Subwords

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a byte of a character that is no token, in SentencePiece's tokenizers


def token_bytes(prepared: PreparedData, split: str, vocab_size: int) -> np.ndarray | None:
    """Bytes of each token of the model's vocabulary, float64 [vocab_size]; None where rows are not all of text.

    A tokenizer that changes the text (a normalizer, a space put in front) is scaled so that the split's tokens stand
    for the bytes of the split's own text, where these are known: its rows are read once.
    """
    streams = prepared.streams[split]
    if prepared.tokenizer is None or any(isinstance(stream.source, Synthetic) for stream in streams):
        return None
    found = np.zeros(max(vocab_size, prepared.tokenizer.vocab_size))
    sizes = sizes_of_tokens(prepared.tokenizer)
    found[: len(sizes)] = sizes
    known = prepared.counts(split).bytes
    if known and not keeps_text(prepared.tokenizer) and all(stream.ours for stream in streams):
        found *= known / _bytes_of_rows(prepared, split, found)
    return found[:vocab_size]


def sizes_of_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes of each token, as the tokenizer decodes it behind another one; 1 for the end of a document."""
    if not isinstance(tokenizer, Subwords):
        return np.ones(tokenizer.vocab_size)
    content = json.loads(tokenizer.text)
    by_bytes = _has(content.get("decoder"), "ByteLevel")
    sizes = np.zeros(tokenizer.vocab_size)
    vocabulary = content["model"]["vocab"]
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((text[0], i) for i, text in enumerate(vocabulary))
    before = None if by_bytes else _plain_token(tokenizer)
    for text, number in pairs:
        if by_bytes:  # each character of a token stands for a byte
            sizes[number] = len(text)
        else:
            assert before is not None
            sizes[number] = 1 if _BYTE.fullmatch(text) else _decoded_bytes(tokenizer, before, number)
    for added in content.get("added_tokens") or ():
        sizes[added["id"]] = len(added["content"].encode())
    sizes[tokenizer.end_of_document] = 1
    return sizes


def keeps_text(tokenizer: Tokenizer) -> bool:
    """Whether a text's tokens stand for exactly its bytes: byte-level, nothing normalised, no space put in front."""
    if not isinstance(tokenizer, Subwords):
        return True
    content = json.loads(tokenizer.text)
    spaced = '"add_prefix_space": true' in json.dumps(content.get("pre_tokenizer"))
    return _has(content.get("decoder"), "ByteLevel") and not content.get("normalizer") and not spaced


def _has(part: Any, kind: str) -> bool:
    """Whether a part of a tokenizer.json, or one of a sequence in it, is of a kind."""
    if not isinstance(part, dict):
        return False
    inner = [value for value in part.values() if isinstance(value, list)]
    return part.get("type") == kind or any(_has(one, kind) for parts in inner for one in parts)


def _plain_token(tokenizer: Subwords) -> int:
    """A token that others are decoded behind: decoders treat the first token of a text in their own way."""
    numbers = (number for number in range(tokenizer.vocab_size) if number != tokenizer.end_of_document)
    return next((number for number in numbers if tokenizer.decode([number]).strip().isalpha()), 0)


def _decoded_bytes(tokenizer: Subwords, before: int, number: int) -> int:
    behind = tokenizer.decode([before, number])
    return max(0, len(behind.encode()) - len(tokenizer.decode([before]).encode()))


def _bytes_of_rows(prepared: PreparedData, split: str, sizes: np.ndarray) -> float:
    """Bytes that the table gives to the tokens of a split; a row's first token is the last one of the row before."""
    rows = (row for stream in prepared.streams[split] for _, row in samples(stream))
    return sum(float(sizes[row["tokens"][1:]].sum()) for row in rows) or 1.0
