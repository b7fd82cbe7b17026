"""What is left of a costly test in every run: each value of each axis, if there are several axes."""

from itertools import product

import pytest

from tests.thinning import axes, kept


@pytest.mark.parametrize("sizes", [(2, 2), (2, 4), (4, 2), (2, 3, 2), (12, 3)])
def test_no_value_of_several_axes_is_lost(sizes):
    """Each second case in order would keep one value of an axis of two, and only that."""
    cases = list(product(*(range(size) for size in sizes)))
    chosen = [case for case, stays in zip(cases, kept(cases, 2), strict=True) if stays]
    assert len(chosen) == len(cases) // 2
    for axis, size in enumerate(sizes):
        assert {case[axis] for case in chosen} == set(range(size))


def test_of_one_axis_each_nth_case_stays():
    assert kept([("a",), ("b",), ("c",), ("d",)], 3) == [True, False, False, True]
    assert kept([], 2) == []


@pytest.mark.parametrize(("first", "second"), [(1, "a"), (2, "a"), (1, "b")])
@pytest.mark.parametrize("third", [3, 4])
def test_arguments_that_are_set_together_are_one_axis(request, first, second, third, fourth):
    assert axes(request.node) == [(repr(third),), (repr(first), repr(second)), repr(fourth)]


@pytest.fixture(params=[5, 6])
def fourth(request):
    return request.param
