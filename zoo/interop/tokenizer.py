"""The tokenizer of a transformers folder, as a run keeps one."""

from pathlib import Path
from typing import Any

from zoo.data.config import HuggingFaceTokenizer
from zoo.data.errors import DataError
from zoo.data.tokenizers import Subwords, library_errors, load_huggingface
from zoo.data.vocabulary import check_numbers
from zoo.files import parse_object, present, read_text
from zoo.interop.errors import InteropError

TOKENIZER = "tokenizer.json"


def read_tokenizer(folder: Path, config: dict[str, Any], vocab_size: int, end: str | None) -> Subwords | None:
    """The folder's tokenizer; None if it has none.

    config: of config.json, whose eos_token_id counts where tokenizer_config.json names no end.  end: of a document, as
    the user names it.  Raises InteropError or DataError for a tokenizer that is damaged or makes too large numbers.
    """
    if not present(folder / TOKENIZER, InteropError):
        if end is not None:
            raise InteropError(f"--end-of-document: {folder} has no {TOKENIZER} that the token could be of")
        return None
    end = end or _stated(folder) or _of_number(folder, config.get("eos_token_id"))
    written = HuggingFaceTokenizer(kind="huggingface", path=str(folder), end_of_document=end)
    try:
        tokenizer = load_huggingface(written)
    except DataError as error:
        text = str(error).replace("set data.tokenizer.end_of_document to", "name with --end-of-document")
        raise InteropError(text) from error
    check_numbers(tokenizer.text, folder / TOKENIZER, InteropError)
    if tokenizer.vocab_size > vocab_size:
        problem = f"makes token numbers up to {tokenizer.vocab_size - 1}; the model has {vocab_size:,} tokens"
        raise InteropError(f"{folder / TOKENIZER}: {problem}")
    return tokenizer


def missing_note(folder: Path) -> str:
    """What a run without a tokenizer can do, and how to get one."""
    note = f"{folder} has no {TOKENIZER}: the run takes token numbers only, no text"
    if any((folder / name).exists() for name in ("tokenizer.model", "vocab.json")):
        note += "; AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) makes one of the files that are there"
    return note


def _stated(folder: Path) -> str | None:
    """The token of the end that tokenizer_config.json names."""
    path = folder / "tokenizer_config.json"
    if not present(path, InteropError):
        return None
    token = parse_object(read_text(path, error=InteropError), path, error=InteropError).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _of_number(folder: Path, number: Any) -> str | None:
    """The token with that number, or with the first of several."""
    number = number[0] if isinstance(number, list) and number else number
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**31:
        return None
    from tokenizers import Tokenizer

    text = read_text(folder / TOKENIZER, error=InteropError)
    with library_errors(f"{folder / TOKENIZER}: not a tokenizer.json"):
        return Tokenizer.from_str(text).id_to_token(number)
