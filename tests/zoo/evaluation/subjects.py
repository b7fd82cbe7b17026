"""Models whose answers are known: one that looks the answer up, one that guesses, one that sees little."""

import re

import numpy as np
import torch

from zoo.data.tokenizers import Bytes
from zoo.evaluation.subject import Subject


class Guesser(Subject):
    """Random logits, the same for the same tokens."""

    def __init__(self, vocab_size: int = 128, max_len: int = 512, tokenizer=None):
        self.name, self.vocab_size, self.max_len, self.tokenizer = "guesser", vocab_size, max_len, tokenizer
        self.start = tokenizer.end_of_document if tokenizer else None

    def logits(self, tokens_BT, row_N, position_N, document_starts_BT=None):
        made = []
        for row, position in zip(row_N.tolist(), position_N.tolist(), strict=True):
            seed = hash((position, *tokens_BT[row, : position + 1].tolist())) % 2**31
            made.append(torch.randn(self.vocab_size, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(made)

    def greedy(self, prompts, max_tokens):
        return [[0] * max_tokens for _ in prompts]


class Oracle(Guesser):
    """Says what it is told to: `right` maps the tokens up to a place to the token that follows."""

    def __init__(self, right, **settings):
        super().__init__(**settings)
        self.right = right

    def logits(self, tokens_BT, row_N, position_N, document_starts_BT=None):
        logits = torch.zeros(len(row_N), self.vocab_size)
        for i, (row, position) in enumerate(zip(row_N.tolist(), position_N.tolist(), strict=True)):
            logits[i, self.right(tokens_BT[row, : position + 1].tolist())] = 20.0
        return logits


def recall(tokens: list[int]) -> int:
    """The token after the latest earlier place with the same two tokens, or else with the same token; 0 if none."""
    for width in (2, 1):
        end = tokens[-width:]
        for at in range(len(tokens) - width - 1, -1, -1):
            if tokens[at : at + width] == end and at + width < len(tokens):
                return tokens[at + width]
    return 0


def latest(tokens: list[int]) -> int:
    """The token after the latest earlier place with the same token; 0 if there is none."""
    for at in range(len(tokens) - 2, -1, -1):
        if tokens[at] == tokens[-1]:
            return tokens[at + 1]
    return 0


def after_separator(tokens: list[int]) -> int:
    """Copy: the token that stands as far from the beginning as this place from the separator."""
    return tokens[len(tokens) - 1 - tokens.index(0)]


class Reader(Guesser):
    """Reads the needles in the last `window` bytes of a prompt, and answers with their values."""

    def __init__(self, window: int, max_len: int):
        super().__init__(vocab_size=257, max_len=max_len, tokenizer=Bytes())
        self.window = window

    def answer(self, tokens) -> str:
        text = self.tokenizer.decode(tokens)
        question = text.rindex("Question:")
        keys = re.findall(r"[a-z]+-[a-z]+|[0-9a-f-]{36}", text[question : text.rindex("\nAnswer")])
        seen = text[max(0, len(text) - self.window) : question]
        found = [re.findall(rf"for {re.escape(key)} is: ([^ ]+)\. ", seen) for key in keys]
        return ", ".join(value for values in found for value in values)

    def logits(self, tokens_BT, row_N, position_N, document_starts_BT=None):
        """Likes the bytes of the answer, wherever the option stands; without an answer all bytes alike."""
        logits = torch.zeros(len(row_N), self.vocab_size)
        for row in set(row_N.tolist()):
            text = self.tokenizer.decode(tokens_BT[row].tolist())
            prompt, _, said = text.rpartition(":")
            wanted = self.answer(self.tokenizer.encode(prompt + ":"))
            for i in np.flatnonzero(row_N.numpy() == row):
                at = int(position_N[i]) - len((prompt + ":").encode()) + 1
                options = [f" {value}" for value in wanted.split(", ") if value and f" {value}".startswith(said[:at])]
                for option in options:
                    if 0 <= at < len(option):
                        logits[i, ord(option[at])] = 20.0
        return logits

    def greedy(self, prompts, max_tokens):
        return [list(f" {self.answer(prompt)}".encode())[:max_tokens] for prompt in prompts]
