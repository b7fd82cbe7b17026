"""Whole characters only, and nothing of a stop string, however the tokens cut the text."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.tokenizers import Bytes
from zoo.inference.rows import Row
from zoo.inference.text import Detokenizer, StopStrings

BYTES = Bytes()
TEXT = "naïve 注意 \U0001f600!"


def pieces(tokenizer, tokens) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.add(int(token)) for token in tokens), detokenizer.finish()]


def test_a_character_comes_with_its_last_byte():
    found = pieces(Bytes(), Bytes().encode("aï注\U0001f600"))
    assert found == ["a", "", "ï", "", "", "注", "", "", "", "\U0001f600", ""]


def test_half_a_character_at_the_end_is_told_at_the_end():
    assert pieces(Bytes(), Bytes().encode("a注")[:-1]) == ["a", "", "", "\ufffd"]


def test_pieces_of_words_join_to_the_text(bpe):
    found = pieces(bpe, bpe.encode(TEXT))
    assert "".join(found) == TEXT
    assert not any("\ufffd" in piece for piece in found)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 256), max_size=30))
def test_any_bytes_join_to_what_decode_gives(tokens):
    assert "".join(pieces(Bytes(), tokens)) == Bytes().decode(tokens)


def test_sentencepiece_spaces_are_kept():
    """Its decoder drops the space before the first word; a piece in the middle keeps it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "c": 2, "</s>": 3}, unk_token="</s>"))
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    from zoo.data.tokenizers import Subwords

    assert pieces(Subwords(library.to_str(), "</s>"), [0, 1, 2, 1]) == ["a", " b", "c", " b", ""]


WRITTEN = ["mu eta", "mu", " mu  eta ", "a mu\n注é eta", "mu etax.", "注注 é注", "mu" * 20 + " 注" * 9]


@pytest.mark.parametrize("text", WRITTEN)
def test_prompt_and_pieces_are_the_text_of_all_tokens(spaced, text):
    """Wherever the prompt ends, in the middle of a character too."""
    tokens = spaced.encode(text).tolist()
    whole = spaced.decode(tokens)
    for n in range(len(tokens) + 1):
        detokenizer, before = Detokenizer(spaced, tokens[:n]), spaced.decode(tokens[:n])
        found = "".join([*(detokenizer.add(token) for token in tokens[n:]), detokenizer.finish()])
        if whole.startswith(before):
            assert before + found == whole, n
        else:  # half a character ends the prompt, and is part of the text once it is whole
            assert before.endswith("\ufffd")
            assert found
            assert whole.endswith(found)


def test_a_continuation_begins_with_its_space(llama):
    mu, eta = llama.encode("mu").tolist(), llama.encode("eta").tolist()
    taken = Row(0, 2, "max_tokens", llama, [], mu)
    assert [taken.take(token).text for token in [*eta, *mu]] == [" eta", " mu"]
    first = Row(0, 2, "max_tokens", llama, [], [llama.end_of_document])  # an empty prompt: the text is a document's
    assert [first.take(token).text for token in [*eta, *mu]] == ["eta", " mu"]
    stopped = Row(0, 9, "max_tokens", llama, [" eta"], mu)
    assert ([stopped.take(token).text for token in [*mu, *eta]], stopped.finish) == ([" mu", ""], "stop")


def test_broken_bytes_do_not_spoil_the_text_before_them(llama):
    """Bytes of a run are decoded together, so one that makes no character turns those before it into U+FFFD."""
    zhu = llama.encode("注").tolist()[-3:]
    detokenizer = Detokenizer(llama, llama.encode("mu"))
    found = [detokenizer.add(token) for token in [*zhu, zhu[0], *llama.encode("eta").tolist(), zhu[0]]]
    assert found == ["", "", "注", "", "\ufffd eta", ""]
    assert detokenizer.finish() == "\ufffd"


def test_a_long_prompt_is_not_read_again_for_every_token(llama):
    class Counted:
        most = 0

        def decode(self, tokens):
            self.most = max(self.most, len(tokens))
            return llama.decode(tokens)

    counted = Counted()
    Detokenizer(counted, llama.encode("mu eta" * 1000).tolist()).add(int(llama.encode("mu")[0]))
    assert counted.most < 70


def cut(text: str, at: list[int]) -> list[str]:
    places = sorted({0, len(text), *(place % (len(text) + 1) for place in at)})
    return [text[a:b] for a, b in pairwise(places)]


def shown(stops: list[str], parts: list[str]) -> str:
    stop, out = StopStrings(stops), ""
    for part in parts:
        out += stop.add(part)
        if stop.stopped:
            return out
    return out + stop.finish()


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["\n\n"], "a\nb\n\nc", "a\nb"),
        (["stop"], "a st", "a st"),
        (["stop"], "ststop!", "st"),
        (["aab"], "aaab", "a"),
        (["abc", "b"], "xabc", "xa"),
        (["bc", "abc"], "xabc", "x"),
        ([], "anything", "anything"),
    ],
)
def test_text_ends_before_the_first_complete_stop_string(stops, text, expected):
    for size in (1, 2, 3, len(text)):
        assert shown(stops, [text[i : i + size] for i in range(0, len(text), size)]) == expected


@settings(deadline=None, max_examples=300)
@given(
    st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0))
)
def test_where_the_text_is_cut_does_not_matter(text, stops, places):
    assert shown(stops, cut(text, places)) == shown(stops, list(text))


def test_nothing_is_held_back_longer_than_needed():
    stop = StopStrings(["</s>"])
    assert [stop.add(part) for part in ("a<", "b", "</", "s", "x")] == ["a", "<b", "", "", "</sx"]


def row(tokens, most=100, stop=(), tokenizer=BYTES):
    """(texts, finish of each piece) until the row ends."""
    taken = Row(0, most, "max_tokens", tokenizer, stop)
    found = []
    for token in tokens:
        found.append(taken.take(int(token)))
        if taken.finish:
            break
    assert taken.text == "".join(piece.text for piece in found)
    return [piece.text for piece in found], [piece.finish for piece in found]


def test_a_row_ends_at_the_end_of_the_document():
    assert row([*b"hi", 256, *b"no"]) == (["h", "i", ""], [None, None, "end"])
    assert row([*b"hi\xe6", 256]) == (["h", "i", "", "\ufffd"], [None, None, None, "end"])


def test_a_row_ends_at_a_stop_string_and_tells_what_is_held_back_at_its_most():
    assert row(b"a--b", stop=["--"]) == (["a", "", ""], [None, None, "stop"])
    assert row(b"a-", most=2, stop=["--"]) == (["a", "-"], [None, "max_tokens"])
    assert row(b"a--", most=3, stop=["--"]) == (["a", "", ""], [None, None, "stop"])


def test_without_a_tokenizer_there_are_numbers_only():
    assert row([1, 2, 256], most=3, tokenizer=None) == (["", "", ""], [None, None, "max_tokens"])
