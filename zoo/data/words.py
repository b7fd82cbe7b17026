"""Words and their tokens, remembered: natural text repeats its words, so most of them are encoded once.

Encoding 10 MB of source code with the `tokenizers` library takes 11.9 s of one core; looking up its 2.6 million words,
45,000 of them different, takes 2.8 s.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

# A word for GPT-2's byte-level pre-tokenizer, or several together: each match begins and ends where that one splits and
# is split the same way when it stands alone.  White space before a word is a match of its own, but for the one space
# that is part of the word: "\n        return" would be another word at every depth.
# Where ASCII classes do not decide (the next character is not ASCII), everything up to the next space is one match.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# An apostrophe may begin "'s", unless a space before it makes it part of " '".
_ENDING = "'(?:[stmd]|re|ve|ll)"
_SIGNS = r"[!-/:-@\[-`{-~]++"
_ASCII_NEXT = r"(?![^ -~\t-\r])"
GPT2_WORDS = re.compile(
    rf" ?(?:[A-Za-z]++|[0-9]++){_ASCII_NEXT}"
    rf"|(?: |(?!{_ENDING})){_SIGNS}{_ASCII_NEXT}"
    r"|[ \t-\r]+(?=[ \t-\r][!-~])|[\t-\r](?=[!-~])"
    rf"|{_ENDING}{_ASCII_NEXT}"
    f"|[{_SPACE}]*+[^{_SPACE}]++|[{_SPACE}]++"
)
# Those of them that are certainly one word.
ONE_WORD = re.compile(rf" ?(?:[A-Za-z]+|[0-9]+|{_SIGNS})|[ \t-\r]+")
MOST_WORDS = 200_000  # remembered at a time, about 200 bytes each
# Of all words that are remembered. A line of Chinese is one word that never comes again: 15 bytes for each character.
MOST_CHARACTERS = 4_000_000


class _Places(dict[str, int]):
    """Numbers words in the order in which they are first looked up; `new` collects those."""

    def __init__(self):
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        self.new.append(word)
        place = self[word] = len(self)
        return place


class Words:
    """Remembers the tokens of words.  `encode` gives the tokens of each of several words; `kind` is their type."""

    def __init__(self, encode: Callable[[list[str]], list[list[int]]], kind: type):
        self._encode, self._kind = encode, kind
        self._forget()

    def _forget(self) -> None:
        self._places, self._characters = _Places(), 0
        self._tokens: np.ndarray = np.empty(0, self._kind)
        self._begins, self._lengths = np.empty(0, np.int64), np.empty(0, np.int64)

    def tokens(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of all words in a row, and how many each word has."""
        if len(self._places) > MOST_WORDS or self._characters > MOST_CHARACTERS:
            self._forget()
        places = np.fromiter(map(self._places.__getitem__, words), np.int64, len(words))
        try:
            new, self._places.new = self._places.new, []
            self._learn(new)
        except BaseException:  # words with a place and without tokens must not be found later
            self._forget()
            raise
        lengths = self._lengths[places]
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        return self._tokens[np.repeat(self._begins[places] - (ends - lengths), lengths) + np.arange(total)], lengths

    def _learn(self, words: list[str]) -> None:
        if not words:
            return
        self._characters += sum(map(len, words))
        found = self._encode(words)
        lengths = np.array([len(numbers) for numbers in found], np.int64)
        begins = len(self._tokens) + np.cumsum(lengths) - lengths
        added: np.ndarray = np.fromiter(chain.from_iterable(found), self._kind, int(lengths.sum()))
        self._tokens = np.concatenate([self._tokens, added])
        self._begins = np.concatenate([self._begins, begins])
        self._lengths = np.concatenate([self._lengths, lengths])
