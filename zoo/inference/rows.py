"""One row of a generation on the host: its tokens, its text, and why it ended."""

from collections.abc import Sequence
from dataclasses import dataclass

from zoo.data.packing import Tokenizer
from zoo.inference.text import Detokenizer, StopStrings


@dataclass(frozen=True)
class Piece:
    """One token of one row, and the text that became certain with it: "" while a character or what may be a stop string
    is not complete, and always without a tokenizer.

    index: the prompt's place among the prompts, from 0.  finish: None; with the row's last token why it ended:
    "end" (the model ended the document), "stop" (a stop string), "max_tokens", or "context" (max_seq_len).
    """

    index: int
    token: int
    text: str
    finish: str | None


class Row:
    """The continuation of one prompt: of `most` tokens at most, `at_most` being why it ends after these.

    prompt: its tokens, on which the text of the first new ones depends.
    """

    def __init__(
        self,
        index: int,
        most: int,
        at_most: str,
        tokenizer: Tokenizer | None,
        stop: Sequence[str],
        prompt: Sequence[int] = (),
    ):
        self.index, self.most, self.text = index, most, ""
        self.tokens: list[int] = []
        self.finish: str | None = None
        self._at_most, self._stop = at_most, StopStrings(stop)
        self._end = tokenizer.end_of_document if tokenizer else None
        self._detokenizer = Detokenizer(tokenizer, prompt) if tokenizer else None

    def take(self, token: int) -> Piece:
        """Add the next token."""
        self.tokens.append(token)
        if token == self._end:
            self.finish = "end"
        elif len(self.tokens) == self.most:
            self.finish = self._at_most
        text = self._new_text(token)
        self.text += text
        return Piece(self.index, token, text, self.finish)

    def _new_text(self, token: int) -> str:
        if self._detokenizer is None:
            return ""
        whole = self._detokenizer.add(token) if token != self._end else ""
        if self.finish:
            whole += self._detokenizer.finish()
        text = self._stop.add(whole)
        if self._stop.stopped:
            self.finish = "stop"
            return text
        return text + self._stop.finish() if self.finish else text
