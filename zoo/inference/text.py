"""Tokens to text as they come: only whole characters, and nothing of a stop string or past it."""

from collections.abc import Sequence

HALF = "\ufffd"  # what a tokenizer makes of bytes that are no character, or not yet
CONTEXT = 8  # tokens of a prompt that are looked at first


class Detokenizer:
    """The text of tokens that come one by one after a prompt: the prompt's text and the pieces are the text of all.

    Text that ends in half a character is held back: a character may take several tokens, as it does in bytes. New text
    is what a token adds to the text of the tokens before it, those of the prompt included, since many tokenizers leave
    out the space of a word that begins a text (Llama's) or write its first token differently.
    """

    def __init__(self, tokenizer, prompt: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._told, self._held = _context(tokenizer, prompt)  # tokens of the latest text, tokens that are not whole yet
        self._before = tokenizer.decode(self._told)
        self._of_prompt = self._text()  # half a character that the prompt ends with

    def add(self, token: int) -> str:
        """The text that is certain now, "" if none."""
        self._held.append(token)
        text = self._text()
        return "" if text.endswith(HALF) else self._tell(text)

    def finish(self) -> str:
        """The text that was held back, with half a character as U+FFFD."""
        return self._tell(self._text())

    def _text(self) -> str:
        whole = self._tokenizer.decode([*self._told, *self._held])
        if whole.startswith(self._before):
            return whole[len(self._before) :]
        return self._tokenizer.decode(self._held)  # broken bytes, which some tokenizers let spoil those before them

    def _tell(self, text: str) -> str:
        # A token without text says nothing about what the next one does to its space.
        self._told, self._held = (self._held if text else [*self._told, *self._held]), []
        self._before = self._tokenizer.decode(self._told)
        text, self._of_prompt = text.removeprefix(self._of_prompt), ""  # no prefix of it if it became a character
        return text


def _context(tokenizer, prompt: Sequence[int]) -> tuple[list[int], list[int]]:
    """As many of a prompt's last tokens as make text of whole characters, all where none do; and those of half a one.

    A prompt ends in half a character, of three bytes at most, only where it is token numbers.
    """
    tokens, n_held = list(prompt), 0
    while n_held < min(4, len(tokens)) and tokenizer.decode(tokens[-64 : len(tokens) - n_held]).endswith(HALF):
        n_held += 1
    n_held %= 4  # four: no half character, but U+FFFD itself
    told, held = tokens[: len(tokens) - n_held], tokens[len(tokens) - n_held :]
    n = CONTEXT
    while n < len(told):
        text = tokenizer.decode(told[-n:])
        if text and HALF not in text:
            return told[-n:], held
        n *= 4
    return told, held


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
