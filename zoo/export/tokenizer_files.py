"""The tokenizer beside an exported model, so that `AutoTokenizer.from_pretrained(folder)` makes the same tokens."""

import json
from pathlib import Path

from zoo.data.tokenizers import END_OF_DOCUMENT_TEXT, Bytes, Subwords


def save_tokenizer(tokenizer: Bytes | Subwords, folder: Path, max_seq_len: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    if isinstance(tokenizer, Bytes):
        tokenizer = bytes_as_subwords()
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {
        "pad_token": settings["eos_token"],
        "padding_side": "left",  # so that the new tokens of a batch follow its prompts
        "split_special_tokens": True,  # text that spells the end of a document does not end one
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_seq_len,
    }
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def bytes_as_subwords() -> Subwords:
    """The byte tokenizer as one of the `tokenizers` library: byte-level BPE without merges, with the bytes' numbers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(_letters())}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(END_OF_DOCUMENT_TEXT, special=True)])
    return Subwords(library.to_str(), END_OF_DOCUMENT_TEXT)


def _letters() -> list[str]:
    """The visible letter that byte-level BPE writes for each byte: its own where there is one, else from U+0100 on."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in own else chr(next(others)) for byte in range(256)]
