import numpy as np
import pytest

from zoo.evaluation.statistics import bootstrap


def test_the_standard_error_is_that_of_a_mean():
    x = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    found = bootstrap(x)
    assert found.value == pytest.approx(x.mean())
    assert found.stderr == pytest.approx(x.std() / np.sqrt(len(x)), rel=0.1)
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(3.92 * found.stderr, rel=0.1)


def test_rows_that_share_a_context_count_as_one():
    x = np.repeat(np.random.default_rng(0).normal(size=50), 20)
    alone = bootstrap(x)
    together = bootstrap(x, clusters=[i // 20 for i in range(len(x))])
    assert together.value == pytest.approx(alone.value)
    assert together.stderr == pytest.approx(alone.stderr * np.sqrt(20), rel=0.2)


def test_the_interval_covers_the_truth_19_times_in_20():
    rng = np.random.default_rng(1)
    covered = [bootstrap(rng.normal(size=100)) for _ in range(200)]
    assert 180 <= sum(found.low <= 0 <= found.high for found in covered) <= 199


@pytest.mark.parametrize(("n", "reach"), [(2, 0.8419), (100, 0.0362), (500, 0.00735)])
def test_a_share_of_none_or_all_is_not_certain(n, reach):
    none, all_right = (bootstrap([value] * n, share=True) for value in (0.0, 1.0))
    assert (none.low, none.high) == (0, pytest.approx(reach, abs=1e-4))
    assert (all_right.low, all_right.high) == (pytest.approx(1 - reach, abs=1e-4), 1)
    lost = bootstrap([3.0] * n)
    assert (lost.low, lost.high) == (3, 3)
    assert bootstrap([0.0] * 6, clusters=["a", "a", "a", "b", "b", "b"], share=True).high == pytest.approx(
        0.8419, abs=1e-4
    )


def test_weights_are_those_of_a_weighted_mean():
    assert bootstrap([1.0, 0.0, 0.0], [2.0, 1.0, 1.0]).value == 0.5


def test_one_row_has_no_spread_and_none_is_an_error():
    assert (bootstrap([1.0]).stderr, bootstrap([1.0]).low) == (None, None)
    assert bootstrap([1.0, 0.0], clusters=["a", "a"]).stderr is None
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_the_same_rows_give_the_same_interval():
    x = np.random.default_rng(2).normal(size=300)
    assert bootstrap(x) == bootstrap(x)
