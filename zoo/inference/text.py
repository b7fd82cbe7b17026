"""Tokens to text as they come: only whole characters, and nothing of a stop string or past it."""

from collections.abc import Sequence

HALF = "\ufffd"  # what a tokenizer makes of bytes that are no character, or not yet


class Detokenizer:
    """The text of tokens that come one by one; the pieces joined are the text of all.

    Text that ends in half a character is held back: a character may take several tokens, as it does in bytes. New text
    is what a token adds to the text of the tokens before it, since many tokenizers write a word's first token
    differently at the beginning of a text.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._told: list[int] = []  # the tokens of the latest piece
        self._held: list[int] = []  # tokens whose text is not whole yet

    def add(self, token: int) -> str:
        """The text that is certain now, "" if none."""
        self._held.append(token)
        text = self._text()
        return "" if text.endswith(HALF) else self._tell(text)

    def finish(self) -> str:
        """The text that was held back, with half a character as U+FFFD."""
        return self._tell(self._text())

    def _text(self) -> str:
        before = self._tokenizer.decode(self._told)
        return self._tokenizer.decode([*self._told, *self._held])[len(before) :]

    def _tell(self, text: str) -> str:
        self._told, self._held = (self._held or self._told), []
        return text


class StopStrings:
    """Passes text on until a stop string is complete, which may come in pieces; of several, the first complete one.

    Held back is the end of the text as long as it may be the beginning of a stop string.
    """

    def __init__(self, strings: Sequence[str]):
        self._strings = strings
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """The text that may be shown now; sets `stopped` once a stop string is there."""
        text, self._held = self._held + text, ""
        ends = [(text.find(stop) + len(stop), -len(stop)) for stop in self._strings if stop in text]
        if ends:
            end, length = min(ends)
            self.stopped = True
            return text[: end + length]
        kept = max((_overlap(text, stop) for stop in self._strings), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """The text that was held back: nothing comes after it, so it begins no stop string."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a beginning of stop, and not all of it."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
