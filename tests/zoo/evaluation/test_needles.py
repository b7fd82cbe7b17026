"""Long-context tasks: what the prompts hold, and models whose score is known."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zoo.evaluation.subjects import Guesser, Reader
from zoo.data.config import BpeTokenizer
from zoo.data.tokenizers import Bytes, train_bpe
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.registry import GROUPS, make_tasks
from zoo.evaluation.run import evaluate, make_examples

PROSE = "It was a bright day in the valley, and the farmers went out early to mow the grass before the rain came. " * 50
NIAH = GROUPS["niah"]


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    path.write_text(PROSE)
    return str(path)


def made(name, model, prose, **fields):
    own = {"task": name, "rows": 4, **fields}
    if name in NIAH and "multikey_2" not in name and "multikey_3" not in name:
        own["text"] = prose
    [task] = make_tasks([own])
    return task, make_examples(task, model)


@pytest.mark.parametrize("name", NIAH)
@pytest.mark.parametrize("length", [1237])
def test_the_answer_is_hidden_once_and_nothing_collides(name, length, prose):
    model = Guesser(vocab_size=257, max_len=4096, tokenizer=Bytes())
    task, examples = made(name, model, prose, lengths=[length])
    for example in examples:
        text = model.tokenizer.decode(example.tokens)
        assert len(example.tokens) + example.max_tokens == length
        hidden = re.findall(r"special magic \w+ for ([^ ]+) is: ([^ ]+)\. ", text)
        values = [value for _, value in hidden]
        assert len(values) == len(set(values))
        keys = {key for key, value in hidden if value in example.answers}
        assert sorted(value for key, value in hidden if key in keys) == sorted(example.answers)
        assert len(example.answers) == task.n_queries * task.n_values
        assert all(text.count(answer) == 1 for answer in example.answers)
        options = [model.tokenizer.decode(option) for option in example.options]
        assert len(set(options)) == len(options) == 16
        assert options[: example.n_right] == [f" {answer}" for answer in example.answers]
        in_text = sum(option.strip() in values for option in options[example.n_right :])
        assert in_text == min(len(values) - len(example.answers), 16 - example.n_right)


@pytest.mark.parametrize("name", ["niah_single_1", "niah_single_2", "niah_multikey_2"])
def test_the_needle_moves_in_even_steps_from_the_beginning_to_the_end(name, prose):
    model = Guesser(vocab_size=257, max_len=4096, tokenizer=Bytes())
    _, examples = made(name, model, prose, lengths=[2000], depths=5, rows=5)
    starts = [example.facets["starts"][0] for example in examples]
    assert [example.facets["depth"] for example in examples] == [0, 0.25, 0.5, 0.75, 1]
    steps = [later - earlier for earlier, later in pairwise(starts)]
    assert max(steps) - min(steps) < 150
    for example, start in zip(examples, starts, strict=True):
        assert model.tokenizer.decode(example.tokens[start:]).startswith("One of the special magic numbers for ")


def test_a_model_that_likes_any_value_of_the_text_is_no_better_than_a_guess_among_needles():
    """The key decides, or the task would measure whether a number has been seen."""
    model = Guesser(vocab_size=257, max_len=2048, tokenizer=Bytes())
    for name, least in (("niah_multikey_2", 16), ("niah_multikey_3", 10)):
        _, examples = made(name, model, None, lengths=[2000])
        for example in examples:
            text = model.tokenizer.decode(example.tokens)
            seen = [model.tokenizer.decode(option).strip() in text for option in example.options]
            assert sum(seen) >= least
            assert seen[0]


@pytest.mark.parametrize("name", NIAH)
def test_a_reader_of_everything_is_always_right(name, prose):
    own = {"task": name, "rows": 3, "lengths": [1200]} | ({} if name.endswith(("key_2", "key_3")) else {"text": prose})
    [result] = evaluate(Reader(window=10**6, max_len=2048), [own])
    assert result.metrics["accuracy"]["value"] == 1
    assert result.metrics["rank_accuracy"]["value"] == 1
    assert result.metrics["mean_rank"]["value"] == 1


def test_a_reader_of_the_end_fails_exactly_where_the_needle_lies_further_back(prose):
    task = {"task": "niah_single_1", "lengths": [2000], "rows": 20, "depths": 20}
    [result] = evaluate(Reader(window=900, max_len=2048), [task])
    [made_task] = make_tasks([task])
    examples = make_examples(made_task, Guesser(vocab_size=257, max_len=2048, tokenizer=Bytes()))
    for example in examples:
        back = len(example.tokens) - example.facets["starts"][0]
        if 800 < back <= 980:  # a needle that is cut at the edge may be read or not
            continue
        seen = back <= 900
        found = result.by["depth"][str(example.facets["depth"])]
        assert found["accuracy"]["value"] == (1.0 if seen else 0.0)
        assert found["rank_accuracy"]["value"] == (1.0 if seen else pytest.approx(1 / 16))


@pytest.mark.parametrize("name", ["niah_single_1", "niah_multivalue", "variable_tracking", "frequent_words"])
def test_a_model_that_guesses_ranks_at_the_chance_level(name, prose):
    own = {"task": name, "rows": 40, "lengths": [1000], "generate": False}
    if name == "niah_multivalue":
        own["text"] = prose
    [result] = evaluate(Guesser(vocab_size=257, max_len=2048, tokenizer=Bytes()), [own])
    for metric in ("rank_accuracy", "mean_rank"):
        numbers = result.metrics[metric]
        assert numbers["low"] <= numbers["chance"] <= numbers["high"]


@settings(max_examples=20, deadline=None)
@given(hops=st.integers(1, 5), chains=st.integers(1, 3), seed=st.integers(0, 100))
def test_a_chain_can_be_followed_to_its_number(hops, chains, seed):
    model = Guesser(vocab_size=257, max_len=2048, tokenizer=Bytes())
    own = {"task": "variable_tracking", "hops": hops, "chains": chains, "seed": seed, "rows": 1, "lengths": [1200]}
    [example] = make_examples(make_tasks([own])[0], model)
    text = model.tokenizer.decode(example.tokens)
    value = {}
    for name, other in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\. ", text):
        value[name] = value.get(other, other)
    asked = re.search(r"have the value (\d+) ", text)[1]
    assert sorted(name for name, held in value.items() if held == asked) == sorted(example.answers)
    assert len(example.answers) == hops + 1


def test_common_words_are_more_common_than_all_others():
    model = Guesser(vocab_size=257, max_len=16_384, tokenizer=Bytes())
    [example] = make_examples(make_tasks([{"task": "common_words", "rows": 1, "lengths": [16_384]}])[0], model)
    text = model.tokenizer.decode(example.tokens)
    listed = re.findall(r"\d+\. ([a-z-]+)", text)
    counts = {word: listed.count(word) for word in set(listed)}
    assert {word for word, n in counts.items() if n == 30} == set(example.answers)
    assert {n for word, n in counts.items() if word not in example.answers} == {3}
    assert len(example.tokens) + example.max_tokens == 16_384


def test_the_three_frequent_words_are_clear():
    model = Guesser(vocab_size=257, max_len=4096, tokenizer=Bytes())
    [example] = make_examples(make_tasks([{"task": "frequent_words", "rows": 1, "lengths": [2048]}])[0], model)
    listed = model.tokenizer.decode(example.tokens).split()
    counts = sorted({word: listed.count(word) for word in set(listed) if len(word) == 5}.items(), key=lambda i: -i[1])
    assert {word for word, _ in counts[:3]} == set(example.answers)
    assert counts[2][1] > counts[3][1]


def test_lengths_are_exact_for_a_tokenizer_of_words(prose):
    bpe = train_bpe(BpeTokenizer(kind="bpe", vocab_size=400, min_frequency=1), [PROSE])
    model = Guesser(vocab_size=400, max_len=2048, tokenizer=bpe)
    for name in (*NIAH, "variable_tracking"):
        _, examples = made(name, model, prose, lengths=[1400]) if name in NIAH else (
            None, make_examples(make_tasks([{"task": name, "rows": 2, "lengths": [1400]}])[0], model))  # fmt: skip
        assert {len(example.tokens) + example.max_tokens for example in examples} == {1400}


def test_the_same_seed_gives_the_same_rows_on_every_machine():
    model = Guesser(vocab_size=257, max_len=2048, tokenizer=Bytes())
    hashes = [evaluate(model, ["niah_single_1"], rows=3, lengths=[800], seed=s)[0].examples_hash for s in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0] == "6700d3bc3053d3dc"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"task": "niah_single_1", "lengths": [64]}, "the prompt alone takes .* tokens of this tokenizer"),
        ({"task": "niah_single_1", "lengths": [8192]}, "8192 tokens, and the model takes 2048"),
        ({"task": "niah_single_2"}, "no held-out text; set text: FILE, or haystack: noise"),
        ({"task": "niah_single_2", "text": "nowhere.txt"}, "nowhere.txt: no such file"),
        ({"task": "common_words", "lengths": [512]}, "the shortest list takes"),
        ({"task": "frequent_words", "lengths": [200]}, "lengths"),
        ({"task": "common_words", "often": 3}, r"^task common_words: often must be more than seldom; found 3 and 3$"),
        ({"task": "niah_single_1", "lengths": [512, 512]}, "lengths: must be different, .*; 512 is there twice"),
        ({"task": "loss_by_position", "lengths": [0]}, r"lengths.0: Input should be greater than or equal to 1"),
        ({"task": "copy", "lengths": []}, "lengths: Tuple should have at least 1 item"),
        ({"task": "induction", "gaps": [-1]}, r"gaps.0: Input should be greater than or equal to 0"),
    ],
)
def test_prompts_that_cannot_be_made_are_refused(own, message):
    with pytest.raises(EvaluationError, match=message):
        evaluate(Guesser(vocab_size=257, max_len=2048, tokenizer=Bytes()), [own])


def test_text_tasks_refuse_a_model_of_plain_numbers():
    with pytest.raises(EvaluationError, match="niah_single_1: needs text, and guesser reads plain numbers"):
        evaluate(Guesser(), ["niah_single_1"])


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_prose_without_a_word_is_refused(text, tmp_path):
    (tmp_path / "empty.txt").write_text(text)
    model = Guesser(vocab_size=257, max_len=600, tokenizer=Bytes())
    task = {"task": "niah_single_2", "text": str(tmp_path / "empty.txt"), "rows": 1}
    with pytest.raises(EvaluationError, match=r"text: .*empty\.txt is empty"):
        evaluate(model, [task])
