"""The tokenizer of an exported folder makes the tokens of training, whatever the original adds, cuts off or pads."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from zoo.data.tokenizers import Subwords
from zoo.errors import ZooError
from zoo.export.tokenizer_files import save_tokenizer

TEXTS = ["mu eta", " mu  eta", "", "<s> mu</s>", "注意 naïve\n\n", "a" * 40]


def byte_level(processor=None) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    if processor:
        made.post_processor = processor(made.token_to_id("<s>"), made.token_to_id("</s>"))
    return made


def template(begin: int, end: int):
    return processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", begin), ("</s>", end)]
    )


def in_sequence(begin: int, end: int):
    return processors.Sequence([processors.ByteLevel(trim_offsets=False), template(begin, end)])


def like_roberta(begin: int, end: int):
    return processors.RobertaProcessing(("</s>", end), ("<s>", begin))


def like_bert(begin: int, end: int):
    return processors.BertProcessing(("</s>", end), ("<s>", begin))


def spaced() -> Tokenizer:
    """As Llama 2's: spaces are part of words, bytes stand for other characters, `<s>` comes first."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    for letter in "▁amutes":
        vocab[letter] = len(vocab)
    vocab["▁m"] = len(vocab)
    made = Tokenizer(models.BPE(vocab, [("▁", "m")], unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    made.post_processor = template(1, 2)
    return made


def cut_and_padded() -> Tokenizer:
    made = byte_level(template)
    made.enable_truncation(3)
    made.enable_padding(length=7, pad_token="</s>")
    return made


KINDS = {
    "nothing added": byte_level,
    "a template": lambda: byte_level(template),
    "a sequence": lambda: byte_level(in_sequence),
    "roberta": lambda: byte_level(like_roberta),
    "bert": lambda: byte_level(like_bert),
    "llama": spaced,
    "cut and padded": cut_and_padded,
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_same_tokens(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    ours = Subwords(kind().to_str(), "</s>")
    save_tokenizer(ours, tmp_path, 64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        expected = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == theirs.encode(text) == expected, text
        assert theirs(text, add_special_tokens=False)["input_ids"] == expected
    batch = theirs(TEXTS[:2], padding=True)["input_ids"]
    assert [row[-len(ours.encode(text)) :] for row, text in zip(batch, TEXTS[:2], strict=True)] == [
        ours.encode(text).tolist() for text in TEXTS[:2]
    ]
    assert theirs("a" * 99)["input_ids"] == ours.encode("a" * 99).tolist()


def test_a_tokenizer_that_transformers_reads_differently_is_refused(tmp_path, monkeypatch):
    """Here because it still adds `<s>`."""
    from zoo.export import tokenizer_files

    made = byte_level(template)
    monkeypatch.setattr(tokenizer_files, "_add_nothing", lambda path: None)
    with pytest.raises(
        ZooError, match=r"transformers makes .* of 'mu eta', and training made .*; nothing was exported"
    ):
        save_tokenizer(Subwords(made.to_str(), "</s>"), tmp_path, 64)
