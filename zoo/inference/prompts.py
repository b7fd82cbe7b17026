"""Prompts to token numbers, with every reason why a prompt cannot be continued."""

from collections.abc import Sequence
from operator import index

from zoo.data.packing import Tokenizer
from zoo.errors import shorten
from zoo.inference.errors import GenerationError
from zoo.recipe import ModelConfig

Prompt = str | Sequence[int]


def encode(prompts: Sequence[Prompt], tokenizer: Tokenizer | None, model: ModelConfig) -> list[list[int]]:
    """The token numbers of each prompt. An empty text is the end of a document, after which the model begins another.

    Raises GenerationError, for all prompts at once, for text that is no Unicode or that no tokenizer is there for,
    numbers that are no tokens of the model, and more tokens than max_seq_len.
    """
    if not prompts:
        raise GenerationError("no prompts: give at least one")
    encoded, problems = [], []
    for number, prompt in enumerate(prompts, start=1):
        try:
            encoded.append(_encode(prompt, tokenizer, model))
        except ValueError as error:
            problems.append(f"prompt {number} of {len(prompts)}: {error}")
    if problems:
        raise GenerationError("\n".join(problems))
    return encoded


def _encode(prompt: Prompt, tokenizer: Tokenizer | None, model: ModelConfig) -> list[int]:
    tokens = _of_text(prompt, tokenizer) if isinstance(prompt, str) else _of_numbers(prompt, model.vocab_size)
    if len(tokens) > model.max_seq_len:
        raise ValueError(
            f"must have at most {model.max_seq_len:,} tokens, the model's max_seq_len; found {len(tokens):,}"
        )
    return tokens


def _of_text(text: str, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None:
        way_out = "give token numbers, such as [1, 2, 3], or, if it reads bytes, tokenizer: {kind: byte} in model.yaml"
        raise ValueError(f"is text, and the model has no tokenizer; {way_out}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes of a command line that are not UTF-8 arrive as half a surrogate pair
        character = text[error.start]
        byte = ord(character) - 0xDC00
        found = f"the byte 0x{byte:02x}" if 0x80 <= byte <= 0xFF else f"the surrogate U+{ord(character):04X}"
        raise ValueError(f"not UTF-8: found {found} as character {error.start}, counted from 0") from error
    return [int(token) for token in tokenizer.encode(text)] or [tokenizer.end_of_document]


def _of_numbers(prompt: Sequence[int], vocab_size: int) -> list[int]:
    try:
        tokens = [index(token) for token in prompt]  # not int, which takes 1.5 for 1
    except (TypeError, ValueError) as error:
        raise ValueError(f"must be text or token numbers; found {shorten(prompt)}") from error
    if not tokens:
        raise ValueError("has no tokens; at least one is needed")
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise ValueError(f"unknown token {token}; the model's are 0..{vocab_size - 1}")
    return tokens
