"""Text cut in pieces has the tokens of the whole: for every kind of tokenizer that is cut, on text made to break it."""

import json
from itertools import chain

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.zoo.evaluation.subjects import Guesser
from zoo.data import DataError, cutting
from zoo.data.config import BpeTokenizer, DataConfig
from zoo.data.packing import cut, pack, training_documents
from zoo.data.sources import Texts, pieces
from zoo.data.tokenizers import GPT2_CUTTER, Subwords, encode_each, train_bpe
from zoo.data.words import GPT2_WORDS, ONE_WORD, Words

BITS = [
    *"abzABZ019 \n\t\r.,;:!?'\"()[]{}<>/\\|-_+=*&^%$#@~`",
    *"\x00\x0b\x0c\x1b\x1c\x1f\x7f\x85\xa0\u1680\u180e\u2003\u200b\u2028\u202f\u3000\ufeff",
    *"éİßﬁK²½Ⅷªº\u0301\u0345\u0308ÅΣς٣०、。，！中文日本かナ゙한글가▁¨",
    *(
        "\U0001f600",
        "👩\u200d💻",
        "'s",
        "'ll",
        "'S",
        "it's",
        "don't",
        "  ",
        "    ",
        "\n\n",
        "\r\n",
        " \n ",
        "the ",
        " the",
    ),
    *("hello", " world", "12345", "ABC", "naïve", "0x1F", "</s>", "<|end|>", "▁▁", " ▁"),
]
TEXT = st.lists(st.sampled_from(BITS), max_size=24).map("".join)
CORPUS = [
    "it's the world's naïve hello world 12345 don't (hello) [the] 0x1F 注意 中文 日本 かナ 한글 \n\n  the end.\r\n\tf",
    "The quick brown fox isn't here; we'll see. a=b+c; f(x, y) == 'the' // hello     world\n    return x\n",
] * 20
LLAMA3, QWEN2, GPT4O = sorted(cutting.KNOWN - {cutting._GPT2}, key=lambda p: ("{1,3}" not in p, "Lu" in p, p))[0:3]


def learnt(pre_tokenizer, normalizer=None, trainer=None, model=None) -> Tokenizer:
    tokenizer = Tokenizer(model or models.BPE(unk_token="<unk>"))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    byte_level = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<|end|>"]
    trainer = trainer or trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=byte_level, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level(**settings):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **settings)


def split(pattern: str):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(use_regex=False)])


def like_llama2(prepend: bool = True) -> Tokenizer:
    """Spaces become U+2581 and nothing splits the text; merges learnt word by word, as SentencePiece does."""
    tokenizer = learnt(pre_tokenizers.Metaspace(prepend_scheme="always" if prepend else "first"))
    if prepend:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def word_piece() -> Tokenizer:
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["<unk>", "<|end|>"], show_progress=False)
    model = models.WordPiece(unk_token="<unk>")
    return learnt(pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(), trainer, model)


def unigram() -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<|end|>"], unk_token="<unk>", show_progress=False
    )
    return learnt(pre_tokenizers.Metaspace(), None, trainer, models.Unigram())


def with_added(tokenizer: Tokenizer, *contents: str, **settings) -> Tokenizer:
    """With tokens that are found before words are split, and are not special."""
    tokenizer.add_tokens([AddedToken(content, **settings) for content in contents])
    return tokenizer


CUT = {
    "gpt2": lambda: learnt(byte_level()),
    "gpt2 with a space before": lambda: learnt(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "gpt2 by split": lambda: learnt(split(cutting._GPT2)),
    "gpt2, nfc": lambda: learnt(byte_level(), normalizers.NFC()),
    "gpt2, nfkc and lower case": lambda: learnt(
        byte_level(), normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    ),
    "digits first": lambda: learnt(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()])
    ),
    "llama3": lambda: learnt(split(LLAMA3)),
    "qwen2, nfc": lambda: learnt(split(QWEN2), normalizers.NFC()),
    "gpt4o": lambda: learnt(split(GPT4O)),
    "gpt-neox": lambda: with_added(learnt(byte_level(), normalizers.NFC()), "  ", "    ", normalized=True),
    "words added to gpt2": lambda: with_added(learnt(byte_level()), "#$%", " the", "B"),
    "bert": word_piece,
    "bert with an added word": lambda: with_added(word_piece(), "naïve", normalized=True),
    "white space": lambda: learnt(pre_tokenizers.Whitespace()),
    "metaspace, unigram": unigram,
    "llama2": like_llama2,
    "llama2, later form": lambda: like_llama2(prepend=False),
}


@pytest.fixture(scope="module", params=CUT)
def tokenizer(request) -> Subwords:
    return Subwords(CUT[request.param]().to_str(), "<|end|>")


LONG = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@given(TEXT, st.data())
@LONG
def test_pieces_have_the_tokens_of_the_whole(tokenizer, text, data):
    assert tokenizer._safe is not None
    places = [m.start() for m in tokenizer._safe.finditer(text) if 0 < m.start() < len(text)]
    chosen = sorted(data.draw(st.sets(st.sampled_from(places)))) if places else []
    parts = [text[a:b] for a, b in zip([0, *chosen], [*chosen, len(text)], strict=True)]
    # Another document before and after, so that places and lengths are those of the right text.
    numbers, lengths = tokenizer.encode_many(["the end", *parts, "x"], [True, True, *[False] * (len(parts) - 1), True])
    assert lengths.sum() == len(numbers)
    begin, end = lengths[0], lengths.sum() - lengths[-1]
    assert numbers[begin:end].tolist() == tokenizer.encode(text).tolist()


@given(st.lists(TEXT, max_size=5))
@LONG
def test_texts_encoded_together_have_the_tokens_of_each_alone(tokenizer, texts):
    assert encode_each(tokenizer, texts) == [tokenizer.encode(text).tolist() for text in texts]


@given(st.lists(st.tuples(TEXT, TEXT), max_size=4))
@LONG
def test_contexts_and_continuations_have_the_tokens_of_the_whole(tokenizer, pairs):
    """Encoded apart where that gives the same, and together elsewhere; blanks belong to the continuation."""
    made = Guesser(tokenizer=tokenizer).encode_pairs(pairs)
    for (context, continuation), found in zip(pairs, made, strict=True):
        n = len(tokenizer.encode(context.rstrip()))
        whole = tokenizer.encode(context + continuation).tolist()
        assert found == ((whole[:n], whole[n:]) if context.rstrip() else ([tokenizer.end_of_document], whole))


@given(TEXT)
@LONG
def test_the_last_cut_is_a_safe_place(tokenizer, text):
    places = [m.start() for m in tokenizer._safe.finditer(text) if 0 < m.start() < len(text)]
    assert tokenizer.last_cut(text) == (places[-1] if places else 0)


@given(TEXT)
@settings(max_examples=200, deadline=None)
def test_words_are_split_as_the_library_splits_the_text(text):
    splitter, words = pre_tokenizers.ByteLevel(add_prefix_space=False), GPT2_WORDS.findall(text)
    assert "".join(words) == text
    parts = [[part for part, _ in splitter.pre_tokenize_str(word)] for word in words]
    assert list(chain.from_iterable(parts)) == [part for part, _ in splitter.pre_tokenize_str(text)]
    assert all(len(found) == 1 for word, found in zip(words, parts, strict=True) if ONE_WORD.fullmatch(word))


def test_the_last_cut_of_a_long_text(monkeypatch):
    monkeypatch.setattr(cutting, "WINDOW", 7)
    for at in range(1, 60):
        text = "a" * at + " " + "b" * 30
        assert cutting.last_cut(cutting.BEFORE_SPACE, text) == at
    assert cutting.last_cut(cutting.BEFORE_SPACE, "a" * 60) == 0


def changed(make, **settings) -> dict:
    return json.loads(make().to_str()) | settings


@pytest.mark.parametrize(
    "settings",
    [
        changed(CUT["gpt2"], pre_tokenizer=None),
        changed(CUT["gpt2"], normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
        changed(CUT["llama3"], pre_tokenizer=json.loads(learnt(split(r"\p{L}+| ")).to_str())["pre_tokenizer"]),
        changed(lambda: learnt(pre_tokenizers.Digits())),
        changed(lambda: learnt(None, normalizers.Replace(" ", "▁"))),
    ],
    ids=["no splitting", "strip", "unknown expression", "digits alone", "tokens over spaces"],
)
def test_what_is_not_known_to_be_safe_is_not_cut(settings):
    assert cutting.safe_places(settings) is None


def test_added_tokens_that_a_cut_would_part_are_seen():
    settings = changed(CUT["gpt2"])
    for token, safe in (
        ({"content": "a b"}, False),
        ({"content": "  "}, True),
        ({"content": "x", "rstrip": True}, False),
    ):
        added = settings["added_tokens"] + [{"special": False} | token]
        assert (cutting.safe_places(settings | {"added_tokens": added}) is not None) == safe


def test_words_are_forgotten_and_learnt_again(monkeypatch):
    monkeypatch.setattr("zoo.data.words.MOST_WORDS", 5)
    calls = []
    words = Words(lambda some: calls.append(some) or [[len(word)] * len(word) for word in some], np.uint16)
    for _ in range(3):
        for text in ("a bb ccc", "dddd a e a", "ff ggg h bb"):
            numbers, lengths = words.tokens(text.split())
            assert numbers.tolist() == [len(w) for w in text.split() for _ in w]
            assert lengths.tolist() == [len(w) for w in text.split()]
    assert words.tokens([])[0].tolist() == []
    assert sum(map(len, calls)) > 8


def test_long_words_that_never_come_again_are_forgotten(monkeypatch):
    """Lines of a script without spaces: few words, and memory that would grow with the text."""
    monkeypatch.setattr("zoo.data.words.MOST_CHARACTERS", 1000)
    words = Words(lambda some: [[len(word)] * len(word) for word in some], np.uint16)
    most = 0
    for i in range(50):
        word = f"{i:02}" + "注" * 198
        assert words.tokens([word])[0].tolist() == [200] * 200
        most = max(most, sum(map(len, words._places)), len(words._tokens))
    assert most == 1200


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("zoo.data.packing.PART_CHARACTERS", 40)
    monkeypatch.setattr("zoo.data.packing.UNCUT_CHARACTERS", 200)
    monkeypatch.setattr("zoo.data.reading.BLOCK_BYTES", 64)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_long_documents_are_packed_as_if_whole(tmp_path, small_parts, fraction):
    bpe = train_bpe(BpeTokenizer(kind="bpe", vocab_size=300), CORPUS)
    texts = tuple(f"{i} naïve words, and more; " * (i % 7) + "注意" * (i % 5) for i in range(30))
    packed = pack(Texts(texts), tmp_path, tokenizer=bpe, fraction=fraction)
    for split, held in (("train", False), ("validation", True)):
        from zoo.data.packing import held_out

        kept = [text for text in texts if text and held_out(text, fraction) == held]
        wanted = [n for text in kept for n in [*bpe.encode(text), bpe.end_of_document]]
        assert packed[split].tokens.tolist() == wanted
        assert packed[split].counts.documents == len(kept)
        assert packed[split].counts.bytes == sum(len(text.encode()) + 1 for text in kept)
        assert packed[split].counts.tokens == len(wanted)


def test_training_documents_in_parts_are_those_that_are_not_held_out(small_parts, tmp_path):
    from zoo.data.packing import held_out

    wanted = [f"document {i}: naïve words\r\n, and more; " * (i % 9) for i in range(40)]
    (tmp_path / "a.txt").write_bytes("<end>".join(wanted).encode())
    source = DataConfig.model_validate(
        {"source": {"kind": "text", "paths": [str(tmp_path)], "separator": "<end>"}}
    ).source
    documents = [list(parts) for parts in training_documents(pieces(source, 1 << 20), 0.4, GPT2_CUTTER)]
    assert max(map(len, documents)) > 3
    assert max(len(part) for parts in documents for part in parts) <= 40
    assert [t for t in map("".join, documents) if t] == [t for t in wanted if t and not held_out(t, 0.4)]


def test_a_bpe_learnt_from_parts_is_that_of_the_whole(small_parts):
    texts = [text * 30 for text in dict.fromkeys(CORPUS)]
    parts = [part.text for part, _ in cut(Texts(tuple(texts)), GPT2_CUTTER)]
    assert len(parts) > 100
    config = BpeTokenizer(kind="bpe", vocab_size=400)
    assert train_bpe(config, parts).identity == train_bpe(config, texts).identity


def test_a_bpe_is_that_of_the_library_alone():
    library = Tokenizer(models.BPE())
    library.pre_tokenizer, library.decoder = byte_level(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=2,
        special_tokens=["<|end-of-document|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    assert train_bpe(BpeTokenizer(kind="bpe", vocab_size=400), CORPUS)._text == library.to_str()


def test_words_beyond_the_bound_are_not_learnt(monkeypatch):
    monkeypatch.setattr("zoo.data.tokenizers.MOST_LEARNT_CHARACTERS", 6)
    tokens = train_bpe(BpeTokenizer(kind="bpe", vocab_size=300), ["abcdef zzzzzz"] * 9)
    assert len(tokens.encode("abcdef")) == 1
    assert len(tokens.encode("zzzzzz")) == 6


def test_a_metaspace_of_older_files_does_not_say_that_it_splits():
    later = unigram().to_str()
    found = json.loads(later)
    found["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    older = Subwords(json.dumps(found), "<|end|>")
    text = "hello world, the end"
    assert older.encode(text).tolist() == Subwords(later, "<|end|>").encode(text).tolist()
    assert older.last_cut(text) == text.rindex(" ")


def test_a_document_without_a_place_to_cut_is_refused_by_name(prep, small_parts, tmp_path):
    path = tmp_path / "dna.txt"
    path.write_text("ACGT" * 100)
    data = {"source": {"kind": "text", "paths": [str(path)]}, "validation_fraction": 0}
    assert prep(data).counts("train").bytes == 401
    with pytest.raises(DataError, match=r"dna\.txt: more than 200 characters in which .* no safe place to cut"):
        prep(data | {"tokenizer": {"kind": "bpe", "vocab_size": 300}})
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "short"}\n' + json.dumps({"text": "ACGT" * 100}) + "\n")
    data |= {"source": {"kind": "jsonl", "paths": [str(path)]}, "tokenizer": {"kind": "bpe", "vocab_size": 300}}
    with pytest.raises(DataError, match=r"a\.jsonl: line 2: more than 200 characters"):
        prep(data)


def test_documents_are_encoded_anew_where_added_tokens_were_split():
    """The name of prepared data holds the tokenizer's identity, which stays that of the file for all others."""
    plain = learnt(byte_level())
    for text, changed in (
        (plain.to_str(), False),
        (with_added(learnt(split(LLAMA3)), "</s>").to_str(), False),
        (with_added(plain, "  ").to_str(), True),
    ):
        of_file = xxhash.xxh64(f"<|end|>\0{text}".encode()).hexdigest()
        assert (Subwords(text, "<|end|>").identity != of_file) == changed
