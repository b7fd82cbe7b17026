"""Means, paired differences, Holm's correction, the choice from the grid, and the fitted curve."""

import math
import random

import pytest
from scipy import stats

from zoo.evaluation.statistics import t_interval, t_test
from zoo.study.statistics import Curve, Mean, choose, difference, differences, fit_curve, paired

VALUES = [2.1, 2.4, 1.9, 2.2]


def test_t_intervals_and_tests_are_those_of_scipy():
    low, high = t_interval(VALUES, 0.9)
    expected = stats.t.interval(0.9, 3, loc=sum(VALUES) / 4, scale=stats.sem(VALUES))
    assert (low, high) == pytest.approx(expected, rel=1e-12)
    assert t_test(VALUES) == pytest.approx(stats.ttest_1samp(VALUES, 0.0).pvalue, rel=1e-9)


def test_one_value_has_no_interval_and_no_test():
    assert Mean.of([2.0]) == Mean(2.0, None, None, None, 1)
    assert Mean.of([]) is None
    with pytest.raises(ValueError, match="needs two values; found 1"):
        t_test([1.0])


def test_equal_values_have_an_interval_of_no_width():
    assert t_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert t_test([0.0, 0.0]) == 1.0
    assert t_test([0.5, 0.5]) == 0.0


def test_differences_are_paired_by_seed():
    """The seeds differ by far more than the architectures, and a pair of each seed shows the difference."""
    first = {1: 1.0, 2: 5.0, 3: 9.0, 4: 2.0}
    other = {seed: value - 0.1 + 0.001 * seed for seed, value in first.items() if seed != 4} | {9: 100.0}
    found = differences({"other": paired(first, other)})["other"]
    assert found.n == 3
    assert found.value == pytest.approx(-0.098)
    assert found.decided
    assert found.holm_high < 0
    unpaired = stats.ttest_ind(list(first.values()), list(other.values())[:3]).pvalue
    assert unpaired > 0.5


def test_one_common_seed_decides_nothing_and_none_is_left_out():
    found = differences({name: paired({1: 2.0}, other) for name, other in (("one", {1: 1.0}), ("none", {2: 1.0}))})
    assert list(found) == ["one"]
    assert found["one"].holm_low is None
    assert not found["one"].decided


def holm(p_values: list[float]) -> list[float]:
    """Holm 1979, written as in the paper's step-down form."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


@pytest.mark.parametrize("seed", range(30))
def test_holm_corrects_and_the_intervals_say_the_same_as_the_decision(seed):
    draw = random.Random(seed)
    first = {s: draw.gauss(3, 0.1) for s in range(4)}
    others = {k: {s: v + draw.gauss(0.1 * k, 0.1) for s, v in first.items()} for k in range(5)}
    found = differences({k: paired(first, other) for k, other in others.items()})
    raw = [t_test([others[k][s] - first[s] for s in first]) for k in others]
    assert [found[k].p_holm for k in others] == pytest.approx(holm(raw))
    for each in found.values():
        assert each.decided == (each.holm_low > 0 or each.holm_high < 0)
        assert each.holm_low <= each.low <= each.value <= each.high <= each.holm_high


def test_a_difference_in_no_family_has_the_plain_interval_and_is_never_decided():
    found = difference([-0.1, -0.1001, -0.0999])
    family = differences({"it": [-0.1, -0.1001, -0.0999], "other": [1.0, -1.0, 0.1]})["it"]
    assert (found.low, found.high, found.p) == (family.low, family.high, family.p)
    assert found.high < 0
    assert (found.holm_low, found.holm_high, found.p_holm, found.decided) == (None, None, None, False)
    assert family.decided


def points(**values):
    return {name: {"lr": value} for name, value in values.items()}


def test_the_lowest_mean_loss_is_chosen_and_a_diverged_point_never_is():
    values = points(low=1e-3, middle=2e-3, high=4e-3)
    found = choose({"low": [2.0, 2.4], "middle": [2.1, 2.1], "high": [1.0, None]}, values)
    assert found.label == "middle"
    assert found.losses == {"low": 2.2, "middle": 2.1, "high": None}
    assert found.edges == [], "what diverged bounds the best value"


@pytest.mark.parametrize(("best", "edges"), [("low", ["lr"]), ("middle", []), ("high", ["lr"])])
def test_a_choice_at_the_edge_is_named(best, edges):
    losses = {name: [2.0 if name == best else 3.0] for name in ("low", "middle", "high")}
    assert choose(losses, points(low=1e-3, middle=2e-3, high=4e-3)).edges == edges


def test_edges_are_judged_along_each_axis_of_the_grid():
    values = {f"{lr},{wd}": {"lr": lr, "wd": wd} for lr in (1, 2, 3) for wd in (0.1, 0.2, 0.3)}
    losses = {label: [abs(v["lr"] - 2) + v["wd"]] for label, v in values.items()}
    found = choose(losses, values)
    assert (found.label, found.edges) == ("2,0.1", ["wd"])


def test_one_value_and_words_have_no_edge():
    assert choose({"a": [1.0]}, {"a": {"lr": 1e-3}}).edges == []
    assert choose({"a": [1.0], "b": [2.0]}, {"a": {"kind": "adamw"}, "b": {"kind": "muon"}}).edges == []


def test_nothing_is_chosen_where_every_point_diverged():
    assert choose({"a": [None], "b": [None]}, points(a=1, b=2)).label is None


def test_the_curve_is_found_again_and_says_how_much_compute_a_loss_takes():
    flops = [1e12 * k for k in range(1, 41)]
    losses = [1.5 + 2.0 * (c / 4e13) ** -0.4 for c in flops]
    curve = fit_curve(flops, losses)
    assert curve.error < 1e-4
    assert curve.flops_for(losses[19]) == pytest.approx(flops[19], rel=0.01)
    assert curve.flops_for(1.5 + 2.0 * 2**-0.4) == pytest.approx(8e13, rel=0.05)
    assert curve.flops_for(0.9) is None


def test_a_flat_curve_needs_more_flops_than_a_float_holds():
    curve = Curve(e=2.0, a=1.0, b=0.01, c0=1e15, first=1e14, last=1e15, error=0.0)
    assert curve.flops_for(2.5) == pytest.approx(1e15 * 2.0**100)
    assert curve.flops_for(2.0003) == math.inf


def test_few_points_are_no_curve():
    assert fit_curve([], []) is None
    assert fit_curve([1e12, 2e12, 3e12, 4e12], [4.0, 3.0, 2.5, 2.2]) is None
    assert math.isfinite(fit_curve([k * 1e9 for k in range(1, 9)], [3.0] * 8).error)


def false_alarms(step: float, right: float, studies: int = 150) -> float:
    """Share of studies that decide a difference of equal architectures: 32 of them, 4 seeds, shares of 100 rows."""
    draw, alarms = random.Random(0), 0
    score = lambda: sum(draw.random() < right for _ in range(100)) / 100  # noqa: E731
    for _ in range(studies):
        scores = [{seed: score() for seed in range(4)} for _ in range(33)]
        pairs = {i: paired(scores[0], other) for i, other in enumerate(scores[1:])}
        alarms += any(each.decided for each in differences(pairs, dict.fromkeys(pairs, step)).values())
    return alarms / studies


def test_equal_shares_of_rows_are_no_certainty():
    """Four seeds that all have two rows more right: a difference that does not vary, and is still one of few rows."""
    others = {i: [0.01, -0.01, 0.0, 0.02] for i in range(31)}
    pairs = {"two rows more": [-0.02] * 4, "a quarter more": [0.25, 0.24, 0.25, 0.26], **others}
    exact, rounded = differences(pairs), differences(pairs, dict.fromkeys(pairs, 0.01))
    assert exact["two rows more"].p_holm == 0
    assert rounded["two rows more"].holm_low < -0.02 < 0 < rounded["two rows more"].holm_high
    assert not rounded["two rows more"].decided
    assert rounded["a quarter more"].decided
    assert Mean.of([0.05] * 4).low == 0.05 > Mean.of([0.05] * 4, 0.01).low


def test_shares_of_rows_give_no_more_false_alarms_than_they_may():
    """Where few rows are right, several seeds often have equal scores: 12% of studies, in 20,000 of them."""
    assert false_alarms(0.0, right=0.01) > 0.05
    assert false_alarms(0.01, right=0.01) <= 0.05
    assert false_alarms(0.01, right=0.05) <= 0.05
