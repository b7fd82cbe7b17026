"""Whether the vocabulary of a tokenizer.json contradicts itself.  No torch.

The `tokenizers` library takes two tokens of one number: one of the two can then never be read back, and the text of
the other is given to the model in its place.
"""

import json
from pathlib import Path
from typing import Any

from zoo.data.errors import DataError
from zoo.errors import ZooError, shorten


def check_numbers(content: Any, place: str | Path, error: type[ZooError] = DataError) -> None:
    """Raise `error`, beginning with `place`, if two tokens have the same number.

    content: of the tokenizer.json, parsed or as text.  A vocabulary that is a list, as that of Unigram, numbers its
    tokens by their places.
    """
    content = json.loads(content) if isinstance(content, str) else content
    model = content.get("model") if isinstance(content, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    tokens: dict[Any, str] = {}
    for token, number in vocabulary.items() if isinstance(vocabulary, dict) else ():
        if isinstance(number, int) and tokens.setdefault(number, token) != token:
            raise error(
                f"{place}: model.vocab: the tokens {shorten(tokens[number])} and {shorten(token)} have the same number "
                f"{number}; the file is damaged: bring it back as it was published"
            )
