"""Tokenizers: text to token numbers and back.

Each has `vocab_size` (one more than the largest number it makes), `end_of_document` (the number put after every
document), `identity` (changes when the tokens of any text could change), `encode` and `decode`.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from zoo.blocks.making import make
from zoo.data import cutting
from zoo.data.config import (
    BYTE_VOCAB_SIZE,
    END_OF_DOCUMENT_BYTE,
    BpeTokenizer,
    HuggingFaceTokenizer,
    TokenizerConfig,
)
from zoo.data.errors import DataError
from zoo.data.files import LFS_POINTER, local_path
from zoo.data.words import GPT2_WORDS, ONE_WORD, Words
from zoo.files import check_file, present, read_text, sha256, write_text

MOST_LEARNT_CHARACTERS = 6_000_000  # of different words; the library needs about 85 bytes for each
FED_CHARACTERS = 1 << 18  # of text that the library is given at a time, to learn from
CHARACTERS_AT_ONCE = 1 << 20  # of texts that `encode_each` gives a tokenizer at a time: its words take memory
PROBE = "a B\n\tc1,  naïve 注意 \U0001f600 \x00 �"
END_OF_DOCUMENT_TEXT = "<|end-of-document|>"


class Bytes:
    """UTF-8 bytes, and 256 after each document."""

    vocab_size = BYTE_VOCAB_SIZE
    end_of_document = END_OF_DOCUMENT_BYTE
    identity = "byte"

    def encode(self, text: str) -> np.ndarray:
        """Return the numbers of `text`, without the end of document."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)

    def encode_many(self, texts: Sequence[str], begins: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of all texts in a row, and how many each has."""
        found = [text.encode() for text in texts]
        return np.frombuffer(b"".join(found), np.uint8).astype(np.uint16), np.array([len(data) for data in found])

    def last_cut(self, text: str) -> int:
        """Where a long text can be cut: anywhere."""
        return len(text)

    def decode(self, numbers: Sequence[int]) -> str:
        """Return the text; the end of document is left out, half a character becomes U+FFFD."""
        return bytes(int(n) for n in numbers if n < 256).decode(errors="replace")


class Subwords:
    """A tokenizer of the `tokenizers` library, from its JSON.

    Text that spells a special token, such as "</s>", is encoded as plain text: no document can end itself.
    """

    def __init__(self, text: str, end_of_document: str):
        self._text = text
        self._end = end_of_document
        self._tokenizer = _library_tokenizer(text)
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.end_of_document = self._tokenizer.token_to_id(end_of_document)
        self._kind = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        settings = json.loads(text)
        # Documents whose tokens were made while added tokens were split as GPT-2's words are must be made anew.
        added = cutting.added_tokens(settings) and cutting.splits_like_gpt2(settings | {"added_tokens": []})
        whole = "\0added tokens stay whole" if added else ""
        self.identity = xxhash.xxh64(f"{end_of_document}\0{text}{whole}".encode()).hexdigest()
        self._safe = cutting.safe_places(settings)
        other = cutting.without_prepended_space(settings)
        self._continuing = _library_tokenizer(json.dumps(other)) if other and self._safe else self._tokenizer
        self._by_word = cutting.splits_like_gpt2(settings) and self._safe is not None
        self._words = Words(lambda words: _numbers(self._continuing, words), self._kind)

    @property
    def text(self) -> str:
        """The tokenizer.json."""
        return self._text

    @property
    def end_of_document_text(self) -> str:
        """The token that ends a document, as text."""
        return self._end

    def __reduce__(self):
        # encode_special_tokens is not part of the JSON, so a copy in another process is made anew.
        return Subwords, (self._text, self._end)

    def encode(self, text: str) -> np.ndarray:
        """Return the numbers of `text`, without the end of document and without other special tokens."""
        return np.asarray(_numbers(self._tokenizer, [text])[0], self._kind)

    def encode_many(self, texts: Sequence[str], begins: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of all texts in a row, and how many each has; the same numbers as those of `encode`.

        `begins`: whether a text begins a document; the others continue one, cut at `last_cut`.
        """
        if self._safe is None:
            found = [np.asarray(numbers, self._kind) for numbers in _numbers(self._tokenizer, texts)]
            return np.concatenate(found), np.array([len(numbers) for numbers in found])
        if self._by_word:
            words = [GPT2_WORDS.findall(text) for text in texts]
            tokens, lengths = self._words.tokens(list(chain.from_iterable(words)))
            ends = np.concatenate([[0], np.cumsum(lengths)])[np.cumsum([len(some) for some in words])]
            return tokens, np.diff(ends, prepend=0)
        return self._encode_pieces(texts, begins)

    def _encode_pieces(self, texts: Sequence[str], begins: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
        """As `encode_many`, cut before spaces; the first piece of a document may be encoded in its own way."""
        pieces = [list(cutting.in_order(cutting.BEFORE_SPACE, text)) for text in texts]
        first = iter(_numbers(self._tokenizer, [some[0] for some, begin in zip(pieces, begins, strict=True) if begin]))
        later = [some[begin:] for some, begin in zip(pieces, begins, strict=True)]
        tokens, lengths = self._words.tokens(list(chain.from_iterable(later)))
        ends = np.concatenate([[0], np.cumsum(lengths)])[np.cumsum([0, *map(len, later)])]
        parts = []
        for i, begin in enumerate(begins):
            head = np.asarray(next(first) if begin else [], self._kind)
            parts.append(np.concatenate([head, tokens[ends[i] : ends[i + 1]]]))
        return np.concatenate(parts), np.array([len(part) for part in parts])

    def can_cut(self, text: str, at: int) -> bool:
        """Whether the numbers of the two pieces of a text, cut before character `at`, are those of the whole."""
        return self._safe is not None and 0 < at < len(text) and self._safe.match(text, at) is not None

    def last_cut(self, text: str) -> int:
        """Where a long text can be cut so that the numbers of the pieces are those of the whole; 0 for nowhere."""
        return 0 if self._safe is None else cutting.last_cut(self._safe, text)

    def decode(self, numbers: Sequence[int]) -> str:
        """Return the text; the end of document is left out, half a character becomes U+FFFD."""
        kept = [int(n) for n in numbers if n != self.end_of_document]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def save(self, folder: Path) -> dict[str, str]:
        """Write tokenizer.json and tokenizer_config.json, as Hugging Face's libraries read them.

        Returns the SHA-256 of each file, for `check_files`.
        """
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self._end}
        content = {"tokenizer.json": self._text, "tokenizer_config.json": json.dumps(settings)}
        for name, text in content.items():
            write_text(folder / name, text)
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in content.items()}


def encode_each(tokenizer: Any, texts: Sequence[str], begins: Sequence[bool] | None = None) -> list[list[int]]:
    """The numbers of each text, the same as those of `encode`, with as few calls of the tokenizer as it allows.

    begins: whether a text begins a document, default all; the others continue one at a place where `cuts` is true.
    tokenizer: of the zoo, or another with `encode`. Its `encode_many` is called if it has one, unless a subclass
    defines `encode` alone anew: the two could disagree then.
    """
    if begins is None:
        begins = [True] * len(texts)
    if not _encodes_many(tokenizer):
        assert all(begins), "without encode_many no text is cut"
        return [[int(number) for number in tokenizer.encode(text)] for text in texts]
    found: list[list[int]] = []
    ends = np.cumsum([len(text) for text in texts])
    for part in np.split(np.arange(len(texts)), np.flatnonzero(np.diff(ends // CHARACTERS_AT_ONCE)) + 1):
        if len(part):
            numbers, lengths = tokenizer.encode_many([texts[i] for i in part], [begins[i] for i in part])
            flat, places = numbers.tolist(), np.cumsum([0, *lengths]).tolist()
            found += (flat[begin:end] for begin, end in pairwise(places))
    return found


def cuts(tokenizer: Any, texts: Sequence[str], places: Sequence[int]) -> list[bool]:
    """Whether `encode_each` gives the two pieces of each text, cut before that character, the numbers of the whole."""
    if not isinstance(tokenizer, Subwords) or not _encodes_many(tokenizer):
        return [False] * len(texts)
    return [tokenizer.can_cut(text, at) for text, at in zip(texts, places, strict=True)]


def _encodes_many(tokenizer: Any) -> bool:
    """Whether `encode_many` is defined where `encode` is, or in a class below."""
    one, many = (
        next((base for base in type(tokenizer).__mro__ if name in vars(base)), None)
        for name in ("encode", "encode_many")
    )
    return one is not None and many is not None and issubclass(many, one)


def check_files(folder: Path, expected: object, remedy: str) -> None:
    """Raise DataError, ending with `remedy`, unless the tokenizer's files are those that `save` wrote.

    expected: what `save` returned, as read from another file; None (of an earlier version): nothing is checked.
    """
    if expected is None:
        return
    if not isinstance(expected, dict) or set(expected) != {"tokenizer.json", "tokenizer_config.json"}:
        raise DataError(f"{folder}: the checksums of tokenizer.json are damaged; {remedy}")
    for name, digest in expected.items():
        check_file(folder / name, DataError)
        if sha256(folder / name) != digest:
            raise DataError(f"{folder / name}: damaged or replaced: its SHA-256 does not match; {remedy}")


class _Cutter:
    """Where text can be cut for a byte-level BPE that is still to be learnt."""

    @staticmethod
    def last_cut(text: str) -> int:
        """The last safe place inside a text; 0 if there is none."""
        return cutting.last_cut(cutting.BETWEEN_CLASSES, text)


GPT2_CUTTER = _Cutter()


def _library_tokenizer(text: str):
    """The library's tokenizer that reads text that spells a special token as plain text."""
    from tokenizers import Tokenizer

    # Pieces are tokenised by processes; the library's threads would make it warn when a process forks later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _numbers(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    return [found.ids for found in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


class WordCounts:
    """How often each word occurs, as `train_bpe` reads it.

    Memory is that of the different words: once they have MOST_LEARNT_CHARACTERS, words that were not seen before are
    left out.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._room = MOST_LEARNT_CHARACTERS

    def add(self, found: Mapping[str, int]) -> None:
        """Add what the next part of the text holds, in the order in which its words first occur."""
        counts = self.counts
        for word, times in found.items():
            if word in counts:
                counts[word] += times
            elif self._room > 0:
                counts[word] = times
                self._room -= len(word)


def train_bpe(config: BpeTokenizer, texts: Iterable[str]) -> Subwords:
    """Learn byte-level BPE (GPT-2's splitting into words) from `texts`; the same texts give the same merges.

    A long document may come in several texts, cut at `cutting.BETWEEN_CLASSES`.
    """
    words = WordCounts()
    for text in texts:
        words.add(Counter(GPT2_WORDS.findall(text)))
    return learn_bpe(config, words)


def learn_bpe(config: BpeTokenizer, words: WordCounts) -> Subwords:
    """As `train_bpe`, from words that are counted already."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    # The words come split already, set apart by spaces, which the byte-level alphabet writes in another way.
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[END_OF_DOCUMENT_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with library_threads():
        tokenizer.train_from_iterator(_repeated(words, splitter), trainer)
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    return Subwords(tokenizer.to_str(), END_OF_DOCUMENT_TEXT)


def _repeated(words: WordCounts, splitter) -> Iterator[str]:
    """Yield every word as often as it occurs, in the byte-level alphabet: the library takes texts, not counts."""
    letters = str.maketrans({c: splitter.pre_tokenize_str(c)[0][0] for c in map(chr, range(128))})
    held: list[str] = []
    size = 0
    for word, times in words.counts.items():
        if ONE_WORD.fullmatch(word):
            spelt = word.translate(letters) + " "
        else:
            spelt = "".join(f"{part} " for part, _ in splitter.pre_tokenize_str(word))
        while times:
            some = min(times, 1 + (FED_CHARACTERS - size) // len(spelt))
            held.append(spelt * some)
            size, times = size + some * len(spelt), times - some
            if size >= FED_CHARACTERS:
                yield "".join(held)
                held, size = [], 0
    yield "".join(held)


@contextmanager
def library_threads() -> Iterator[None]:
    """Let the library use its threads, whose number does not change what is learnt or encoded."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before or "false"


def load_huggingface(config: HuggingFaceTokenizer) -> Subwords:
    """Read tokenizer.json from a file, a folder or the Hub.  DataError if there is none, or no end token."""
    path = local_path(config.path)
    if os.path.lexists(path) and not path.is_dir():
        text, settings = _read(path), "{}"
    elif path.is_dir():
        text = _read(path / "tokenizer.json")
        settings = _read(path / "tokenizer_config.json") if present(path / "tokenizer_config.json", DataError) else "{}"
    else:
        text, settings = _from_hub(config)
    end = config.end_of_document or _end_token(settings, config)
    return _checked(text, end, config)


def _read(path: Path) -> str:
    return read_text(path, error=DataError)


def _from_hub(config: HuggingFaceTokenizer) -> tuple[str, str]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def fetch(name: str) -> str:
        return Path(hf_hub_download(config.path, name, revision=config.revision)).read_text(encoding="utf-8")

    try:
        text = fetch("tokenizer.json")
    except Exception as error:  # the library's errors have no common base: network, gate, bad name, missing file
        message = f"tokenizer {config.path!r}: neither a local file or folder, nor readable from the Hub: {error}"
        raise DataError(message) from error
    try:
        return text, fetch("tokenizer_config.json")
    except EntryNotFoundError:
        return text, "{}"


def _end_token(settings: str, config: HuggingFaceTokenizer) -> str | None:
    """The end-of-sequence token that a tokenizer_config.json names: as text, or as a mapping with its `content`."""
    try:
        token = json.loads(settings).get("eos_token")
        token = token["content"] if isinstance(token, dict) else token
    except (ValueError, AttributeError, KeyError, RecursionError) as error:
        raise DataError(f"tokenizer {config.path}: not a tokenizer_config.json: {error!r}") from error
    return token if isinstance(token, str) else None


def _checked(text: str, end: str | None, config: HuggingFaceTokenizer) -> Subwords:
    if text.encode().startswith(LFS_POINTER):
        raise DataError(
            f"tokenizer {config.path}: its tokenizer.json is a Git LFS pointer, not the file itself; run `git lfs pull`"
        )
    with library_errors(f"tokenizer {config.path}: not a tokenizer.json"):
        return _parsed(text, end, config)


def _parsed(text: str, end: str | None, config: HuggingFaceTokenizer) -> Subwords:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    if not tokenizer.get_vocab_size(with_added_tokens=True):
        raise DataError(f"tokenizer {config.path}: its vocabulary is empty")
    if end is None or tokenizer.token_to_id(end) is None:
        special = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
        unsaid = "there is no tokenizer_config.json in its folder, or it does not say which token ends a document"
        found = f"no token {end!r} in it" if end else unsaid
        raise DataError(
            f"tokenizer {config.path}: {found}; set data.tokenizer.end_of_document to one of its tokens "
            f"(special ones: {', '.join(special[:10]) or 'none'})"
        )
    subwords = Subwords(text, end)
    subwords.encode(PROBE)  # a damaged one can fail, or panic, when it is first used
    return subwords


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn what the `tokenizers` library raises for a damaged tokenizer into a DataError that begins with `what`.

    The library raises bare Exception, and PanicException, which is none.  A panic also writes lines of Rust to standard
    error; they are kept back while the block runs.
    """
    try:
        with _standard_error_kept_back():
            yield
    except DataError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # KeyboardInterrupt, SystemExit
        found = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{what}: {found[0]}") from error


@contextmanager
def _standard_error_kept_back() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing can be written there
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def own_tokenizer(config: TokenizerConfig) -> Subwords:
    """The tokenizer of another package.  Raises PartError if its `module` makes none."""
    return make(f"tokenizer {config.kind!r}", config.module, config, is_a=Subwords)
