import numpy as np
import pytest

from zoo.data import DataError
from zoo.data.config import Synthetic
from zoo.data.synthetic import IGNORED, make_rows, mqar, repeat


def task(name: str, **settings) -> Synthetic:
    return Synthetic(kind="synthetic", task=name, **settings)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("filler", ["zeros", "random"])
@pytest.mark.parametrize(("length", "pairs"), [(64, 4), (64, 16), (32, 1)])
def test_mqar_rows_keep_the_rules(filler, length, pairs):
    vocab = 256
    tokens, labels = mqar(rng(), 200, length, task("mqar", vocab_size=vocab, pairs=pairs, filler=filler))
    for row, label in zip(tokens, labels, strict=True):
        keys, values = row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert (keys >= 1).all()
        assert (keys < vocab // 2).all()
        assert (values >= vocab // 2).all()
        assert (values < vocab).all()
        queries = np.flatnonzero(label != IGNORED)
        assert len(queries) == pairs
        assert (queries >= 2 * pairs).all()
        assert (queries % 2 == 0).all()
        assert dict(zip(row[queries], label[queries], strict=True)) == dict(zip(keys, values, strict=True))
        others = np.setdiff1d(np.arange(2 * pairs, length), queries)
        assert not np.isin(row[others], keys).any()
        assert (row[others] == 0).all() if filler == "zeros" else (row[others] > 0).all()


def test_mqar_with_as_many_pairs_as_places_fills_every_place():
    _, labels = mqar(rng(), 20, 16, task("mqar", vocab_size=64, pairs=4))
    assert (labels[:, 8::2] != IGNORED).all()


def test_mqar_first_gap_follows_the_power_law():
    # One pair: P(g) is exactly g^(a-1) / sum, g = 1..31.
    _, labels = mqar(rng(), 20_000, 64, task("mqar", vocab_size=256, pairs=1))
    gaps = (np.argmax(labels != IGNORED, axis=1) - 2) // 2 + 1
    weights = np.arange(1, 32) ** (0.01 - 1)
    found = np.bincount(gaps, minlength=32)[1:] / len(gaps)
    np.testing.assert_allclose(found, weights / weights.sum(), atol=4 * np.sqrt(0.25 / len(gaps)))


def test_copy_predicts_the_second_half():
    tokens, labels = repeat(rng(), 50, 24, task("copy", vocab_size=64, span=10))
    np.testing.assert_array_equal(tokens[:, :10], tokens[:, 11:21])
    assert (tokens[:, 10] == 0).all()
    assert (tokens[:, :10] > 0).all()
    np.testing.assert_array_equal(labels[:, 10:20], tokens[:, 11:21])
    assert (labels[:, :10] == IGNORED).all()
    assert (labels[:, 20:] == IGNORED).all()


@pytest.mark.parametrize("filler", ["zeros", "random"])
def test_induction_predicts_all_but_the_first_of_the_second_half(filler):
    tokens, labels = repeat(rng(), 50, 24, task("induction", vocab_size=64, span=8, gap=5, filler=filler))
    np.testing.assert_array_equal(tokens[:, :8], tokens[:, 13:21])
    np.testing.assert_array_equal(labels[:, 13:20], tokens[:, 14:21])
    assert (np.delete(labels, np.s_[13:20], axis=1) == IGNORED).all()
    for row in tokens:
        assert not np.isin(row[8:13], row[:8]).any()


def test_span_is_as_long_as_the_row_allows():
    assert task("copy").resolved_span(32) == 15
    assert task("induction", gap=4).resolved_span(32) == 14


def test_splits_have_their_sizes_and_share_no_row():
    rows = list(make_rows(task("copy", vocab_size=8, span=3, rows=2000, validation_rows=300), 8, seed=1))
    found = {split: {r.tobytes() for s, r, _ in rows if s == split} for split in ("train", "validation")}
    assert [sum(s == split for s, _, _ in rows) for split in found] == [2000, 300]
    assert not found["train"] & found["validation"]


def test_same_seed_same_rows_other_seed_other_rows():
    def first(seed):
        return next(make_rows(task("mqar", rows=10), 64, seed))[1]

    np.testing.assert_array_equal(first(3), first(3))
    assert (first(3) != first(4)).any()


def test_too_few_different_rows_is_an_error():
    with pytest.raises(DataError, match="too few different rows exist"):
        list(make_rows(task("copy", vocab_size=8, span=1, rows=5000, validation_rows=1), 8, seed=0))
