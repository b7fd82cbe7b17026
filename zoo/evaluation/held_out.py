"""Held-out text: the validation rows of a run, or of another `data` section, in the tokens of the model."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.stored import StoredRow, stored_rows
from zoo.evaluation.errors import EvaluationError


class HeldOut:
    """The validation split of a `data` section; the training split where it has no validation rows.

    data: zoo.data.config.DataConfig.  name: of the file that it is from, None for the run's own.
    Nothing is prepared before the first row is asked for.
    """

    def __init__(self, data: Any, *, max_seq_len: int, vocab_size: int, seed: int, name: str | None = None):
        self.data, self.name = data, name
        self._settings = {"max_seq_len": max_seq_len, "vocab_size": vocab_size, "seed": seed}

    @classmethod
    def of_prepared(cls, prepared: Any) -> "HeldOut":
        """Held-out rows of data that are prepared already."""
        held_out = cls(prepared.config, max_seq_len=prepared.seq_len, vocab_size=prepared.vocab_size, seed=0)
        held_out.prepared = prepared
        return held_out

    @cached_property
    def prepared(self):
        from zoo.data import prepare

        return prepare(self.data, **self._settings)

    @property
    def was_read(self) -> bool:
        """Whether a task has asked for any of it."""
        return "prepared" in self.__dict__

    @property
    def split(self) -> str:
        return "validation" if self.prepared.rows("validation") else "train"

    @cached_property
    def token_bytes(self) -> np.ndarray | None:
        """Bytes of text that each token stands for, [vocabulary]; None for plain numbers."""
        from zoo.data.token_bytes import token_bytes

        return token_bytes(self.prepared, self.split, self._settings["vocab_size"])

    def rows(self) -> Iterator[StoredRow]:
        """The rows as training packed them."""
        return stored_rows(self.prepared, self.split)

    def stream(self) -> Iterator[np.ndarray]:
        """The tokens of the split, in the order of the text, row by row."""
        return (row.inputs for row in self.rows())

    def documents(self) -> Iterator[str]:
        """The texts; a document that a row cuts comes in parts."""
        tokenizer = self.prepared.tokenizer
        if tokenizer is None:
            raise EvaluationError("the held-out rows are plain numbers, not text")
        for row in self.rows():
            for part in np.split(row.inputs, row.starts[row.starts > 0]):
                text = tokenizer.decode(part)
                if text.strip():
                    yield text


def data_section(path: Path, tokenizer_folder: Path | None, byte_tokenizer: bool):
    """The `data` section of a recipe, or of a file that holds nothing else, with the tokenizer of the model.

    Raises RecipeError for the file, EvaluationError if the model has no tokenizer and the data are text.
    """
    from zoo.recipe import load_data_section

    data = load_data_section(path)
    if data.resolved_tokenizer() is None:
        return data
    if byte_tokenizer:
        tokenizer: dict[str, Any] = {"kind": "byte"}
    elif tokenizer_folder is not None:
        tokenizer = {"kind": "huggingface", "path": str(tokenizer_folder)}
    else:
        raise EvaluationError(f"{path}: holds text, and the model has no tokenizer: it reads plain numbers")
    return type(data).model_validate(data.model_dump() | {"tokenizer": tokenizer})
