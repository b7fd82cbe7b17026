"""The recall tasks: rows by rule, and models whose score is known."""

import numpy as np
import pytest

from tests.zoo.evaluation.subjects import Guesser, Oracle, after_separator, latest, recall
from zoo.data.config import Synthetic
from zoo.data.synthetic import MAKERS
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.run import evaluate
from zoo.evaluation.task import IGNORED

RECALL = ("mqar", "compositional_mqar", "forgetting_mqar", "copy", "induction")
RIGHT = {"mqar": latest, "compositional_mqar": recall, "forgetting_mqar": latest, "copy": after_separator}
RIGHT["induction"] = lambda tokens: tokens[len(tokens) - 128]  # a row of 256 is 128 tokens, twice


@pytest.mark.parametrize("task", RECALL)
def test_a_model_that_looks_the_answer_up_is_always_right(task):
    [result] = evaluate(Oracle(RIGHT[task], vocab_size=8192), [task], rows=20)
    assert result.metrics["accuracy"]["value"] == 1
    assert result.metrics["rows_right"]["value"] == 1
    assert result.metrics["nats"]["value"] < 1e-3


@pytest.mark.parametrize("task", RECALL)
def test_a_model_that_guesses_scores_the_stated_chance_level(task):
    settings = {"task": task, "lengths": [30], "vocab_size": 32}
    if task.endswith("mqar"):
        settings["pairs"] = [4]
    [result] = evaluate(Guesser(vocab_size=32, max_len=64), [settings], rows=200)
    accuracy = result.metrics["accuracy"]
    assert accuracy["chance"] == 1 / 32
    assert accuracy["low"] - 1e-9 <= accuracy["chance"] <= accuracy["high"] + 1e-9


def test_a_model_that_sees_16_tokens_fails_exactly_beyond_them():
    near = Oracle(lambda tokens: latest(tokens[-17:]), vocab_size=8192)
    [result] = evaluate(near, [{"task": "mqar", "lengths": [128], "pairs": [8]}], rows=50)
    by_distance = {key: found["accuracy"]["value"] for key, found in result.by["distance"].items()}
    assert all(by_distance[key] == 1 for key in ("1", "2", "3-4", "5-8", "9-16") if key in by_distance)
    assert all(by_distance[key] == 0 for key in ("17-32", "33-64", "65-128") if key in by_distance)
    assert {"9-16", "33-64"} <= set(by_distance)


@pytest.mark.parametrize("filler", ["zeros", "random"])
@pytest.mark.parametrize(("pairs", "length"), [(4, 24), (8, 40), (16, 128)])
def test_compositional_keys_are_never_told_by_one_part(pairs, length, filler):
    source = Synthetic(kind="synthetic", task="compositional_mqar", vocab_size=256, pairs=pairs, filler=filler)
    assert not list(source.problems(seq_len=length, vocab_size=256))
    tokens, labels = MAKERS[source.task](np.random.default_rng(0), 50, length, source)
    for row, answers in zip(tokens, labels, strict=True):
        written = row[: 3 * pairs].reshape(pairs, 3)
        assert len({tuple(key) for key in written[:, :2].tolist()}) == pairs
        for part in (0, 1):
            assert set(np.unique(written[:, part], return_counts=True)[1]) == {2}
        value = {(a, b): v for a, b, v in written.tolist()}
        places = np.flatnonzero(answers != IGNORED)
        asked = [(int(row[p - 1]), int(row[p])) for p in places]
        assert sorted(asked) == sorted(value)
        assert [value[key] for key in asked] == answers[places].tolist()


@pytest.mark.parametrize(("pairs", "length"), [(1, 8), (2, 16), (5, 40), (16, 128)])
def test_of_a_key_written_twice_the_last_value_is_right(pairs, length):
    source = Synthetic(kind="synthetic", task="forgetting_mqar", vocab_size=256, pairs=pairs)
    assert not list(source.problems(seq_len=length, vocab_size=256))
    tokens, labels = MAKERS[source.task](np.random.default_rng(0), 50, length, source)
    for row, answers in zip(tokens, labels, strict=True):
        written = row[: source.written].reshape(-1, 2)
        last = {int(key): int(value) for key, value in written}
        assert len(last) == pairs
        assert len(written) == pairs + pairs // 2
        assert len(set(written[:, 1].tolist())) == len(written)
        places = np.flatnonzero(answers != IGNORED)
        assert {int(row[p]): int(answers[p]) for p in places} == last


@pytest.mark.parametrize("task", ["compositional_mqar", "forgetting_mqar"])
def test_random_filler_never_uses_the_keys_of_its_row(task):
    source = Synthetic(kind="synthetic", task=task, vocab_size=256, pairs=6, filler="random")
    tokens, labels = MAKERS[task](np.random.default_rng(0), 30, 64, source)
    width = 2 if task == "compositional_mqar" else 1
    for row, answers in zip(tokens, labels, strict=True):
        keys = row[: source.written].reshape(-1, source.written // len(row[: source.written : width + 1]))[:, :width]
        places = np.flatnonzero(answers != IGNORED)
        asked = {int(p) - back for p in places for back in range(width)}
        filler = [t for t in range(source.written, 64) if t not in asked]
        assert not set(row[filler].tolist()) & set(keys.ravel().tolist())
        assert (row > 0).all()


def test_rows_depend_on_the_seed_alone():
    hashes = [evaluate(Guesser(), ["mqar"], rows=8, seed=seed)[0].examples_hash for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0] == "cf32ca1c1c422a99"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lengths": [2048]}, "2048 tokens, and the model takes 512"),
        ({"vocab_size": 512}, "vocab_size: must be at most model.vocab_size = 128; found 512"),
        ({"lengths": [64], "pairs": [40]}, "pairs: mqar needs 80 tokens for its keys"),
        ({"pears": 3}, "unknown key 'pears'.*Did you mean 'pairs'"),
        ({"pairs": "many"}, "task mqar: pairs"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(EvaluationError, match=message):
        evaluate(Guesser(), [{"task": "mqar", **settings}], rows=4)


def test_rows_too_short_for_any_number_of_pairs_are_refused():
    """A vocabulary of 16 tokens: a row has fewer tokens than the vocabulary."""
    with pytest.raises(EvaluationError, match=r"^mqar: lengths: 4 pairs need rows of 20 tokens; found 14"):
        evaluate(Guesser(vocab_size=16), ["mqar"])
