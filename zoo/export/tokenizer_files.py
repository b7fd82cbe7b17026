"""The tokenizer of an exported model, so that `AutoTokenizer.from_pretrained(folder)` makes the same tokens."""

import json
from collections.abc import Iterator
from pathlib import Path

from zoo.data.tokenizers import END_OF_DOCUMENT_TEXT, Bytes, Subwords
from zoo.errors import ZooError

# Texts that tokenizers are known to treat in ways of their own; those of its special tokens are added to them.
PROBES = ("mu eta", " mu  eta ", "a\n\n b\t.", "Naïve 注意 \U0001f600 e\u0301", "don't , 3.14", "", " ", "\n")


def save_tokenizer(tokenizer: Bytes | Subwords, folder: Path, max_seq_len: int) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    What a tokenizer.json adds to every text (Llama's `<s>`), cuts off or pads is left out: training did without.
    Raises ZooError if transformers would make other tokens than the zoo all the same.
    """
    if isinstance(tokenizer, Bytes):
        tokenizer = bytes_as_subwords()
    tokenizer.save(folder)
    _add_nothing(folder / "tokenizer.json")
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
    _check_same(tokenizer, folder)


def _add_nothing(path: Path) -> None:
    """Take out of a tokenizer.json what makes more or fewer tokens of a text than its words have."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {"truncation": None, "padding": None, "post_processor": _offsets_only(content.get("post_processor"))}
    if any(content.get(name) != value for name, value in kept.items()):
        path.write_text(json.dumps(content | kept, ensure_ascii=False), encoding="utf-8")


def _offsets_only(processor: dict | None) -> dict | None:
    """The part of a post-processor that adds no tokens, and moves offsets at most."""
    if processor is None:
        return None
    kind = processor.get("type")
    if kind == "ByteLevel":
        return processor
    if kind == "Sequence":
        parts = [part for part in map(_offsets_only, processor["processors"]) if part]
        return {"type": "Sequence", "processors": parts} if parts else None
    return None


def _check_same(tokenizer: Subwords, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in (*PROBES, *_texts_of_special(folder)):
        found, expected = theirs(text)["input_ids"], tokenizer.encode(text).tolist()
        if found != expected:
            raise ZooError(
                f"tokenizer: transformers makes {found[:8]} of {text!r}, and training made {expected[:8]}; "
                "nothing was exported. --format safetensors writes the weights alone"
            )


def _texts_of_special(folder: Path) -> Iterator[str]:
    """The texts of its added tokens, alone and in a sentence."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in content.get("added_tokens") or ():
        yield token["content"]
        yield f"mu {token['content']} eta{token['content']}"


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
