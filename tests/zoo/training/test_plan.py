"""Spans, batches and learning rates: plain arithmetic, against values worked out by hand."""

import math

import pytest
from pydantic import ValidationError

from zoo.errors import RecipeError
from zoo.training.config import EvalConfig, TrainConfig
from zoo.training.duration import Span
from zoo.training.plan import Plan


def plan(n_rows=64, seq_len=16, evaluation=None, **train):
    train = {"duration": "100ba", "batch_size": 4, **train}
    return Plan.make(TrainConfig(**train), EvalConfig(**(evaluation or {})), seq_len, n_rows)


@pytest.mark.parametrize(
    ("text", "batches"),
    [
        ("2000ba", 2000),
        ("15Btok", 234_375_000),
        ("15_000_000_000tok", 234_375_000),
        ("15e9tok", 234_375_000),
        ("1.5Ktok", 24),  # 1500 / 64 = 23.4, rounded up: at least the stated amount
        ("2ep", 32),
        ("1.5ep", 24),
        ("0.25dur", 25),
    ],
)
def test_spans_in_batches(text, batches):
    assert Span.parse(text).batches(64, 16, 100) == batches


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2000", "a number and a unit"),
        ("2000 ba", "a number and a unit"),
        ("2000ba\n", "a number and a unit"),
        ("-1ba", "a number and a unit"),
        ("1.5ba", "whole number of batches"),
        ("0ba", "more than 0"),
        ("1e99tok", "at most 1e18"),
        ("0.5dur", "a share of this very value"),
    ],
)
def test_durations_that_are_refused(text, reason):
    with pytest.raises(ValidationError, match=reason):
        TrainConfig(duration=text)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"batch_size": 4, "batch_tokens": 64}, "not both"),
        ({"batch_size": True}, "valid integer"),
        ({"micro_batch": "all"}, "must be a whole number from 1, or auto; found 'all'"),
        ({"checkpoint": {"every": "2dur"}}, "at most 1dur"),
        ({"checkpoint": {"keep": 0}}, "must be a whole number from 1, or all; found 0"),
        ({"schedule": {"kind": "cosine", "decay": "10ba"}}, "decay is for kind: wsd"),
        ({"optimizer": {"lr": 0}}, "greater than 0"),
        ({"optimizer": {"lr": 1e300}}, "less than or equal to 1000000"),
        ({"optimizer": {"eps": 1e300}}, "less than or equal to 1000000"),
        ({"optimizer": {"weight_decay": 1e300}}, "less than or equal to 1000000"),
        ({"clip_norm": 1e300}, "less than or equal to 1000000"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "less than 1"),
        ({"optimiser": {}}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_are_refused(values, reason):
    with pytest.raises(ValidationError, match=reason):
        TrainConfig(**values)


def test_batch_tokens_are_rows():
    assert TrainConfig(batch_tokens=524_288).rows(8192) == 64
    assert TrainConfig().rows(8192) == 32
    assert TrainConfig(batch_tokens=8192).problems(8192) == []
    assert TrainConfig(batch_tokens=20_000).problems(8192) == [
        (("batch_tokens",), "must be a multiple of data.seq_len (8192), e.g. 16384 or 24576; found 20000")
    ]


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_learning_rates_at_the_edges(kind):
    p = plan(schedule={"kind": kind, "warmup": "10ba", "final_lr_ratio": 0.1})
    assert [p.lr_ratio(batch) for batch in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert p.lr_ratio(99) == pytest.approx(0.1)
    assert p.lr_ratio(98) > 0.1
    rates = [p.lr_ratio(batch) for batch in range(9, 100)]
    assert rates == sorted(rates, reverse=True)


def test_learning_rates_in_the_middle():
    cosine = plan(schedule={"kind": "cosine", "warmup": "0ba", "final_lr_ratio": 0.2})
    assert cosine.lr_ratio(24) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert cosine.lr_ratio(49) == pytest.approx(0.6)
    linear = plan(schedule={"kind": "linear", "warmup": "20ba", "final_lr_ratio": 0})
    assert linear.lr_ratio(39) == pytest.approx(0.75)
    wsd = plan(schedule={"kind": "wsd", "warmup": "10ba", "decay": "30ba", "final_lr_ratio": 0})
    assert [wsd.lr_ratio(batch) for batch in (10, 69, 84)] == pytest.approx([1, 1, 0.5])


def test_a_warmup_of_the_whole_duration():
    p = plan(schedule={"warmup": "1dur"})
    assert [p.lr_ratio(batch) for batch in (0, 99)] == pytest.approx([0.01, 1.0])


def test_validation_and_checkpoints_are_due_at_the_interval_and_at_the_end():
    p = plan(duration="10ba", checkpoint={"every": "4ba"}, evaluation={"every": "0.3dur"})
    assert [done for done in range(1, 11) if p.saves(done)] == [4, 8, 10]
    assert [done for done in range(1, 11) if p.validates(done)] == [3, 6, 9, 10]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"batch_size": 65}, r"train\.batch_size: must be at most the 64 rows of the data; found 65"),
        ({"schedule": {"warmup": "101ba"}}, r"train\.schedule: must fit into the duration of 100 batches; found 101"),
        (
            {"schedule": {"kind": "wsd", "warmup": "60ba", "decay": "0.5dur"}},
            "found 60 batches of warm-up and 50 of decay",
        ),
    ],
)
def test_plans_that_cannot_be(train, message):
    with pytest.raises(RecipeError, match=message):
        plan(**train)


def test_a_length_without_a_unit_is_refused_with_one():
    with pytest.raises(ValidationError, match=r"must be a number and a unit: .* such as 5ba; found 5"):
        TrainConfig(duration=5)


@pytest.mark.parametrize(
    ("train", "found"),
    [
        ({"duration": "12ba", "schedule": {"warmup": "20ba"}}, "12 batches; found 20 batches of warm-up"),
        ({"duration": "64Ktok", "schedule": {"warmup": "0.1Mtok"}}, "8 batches; found 13 batches of warm-up"),
        (
            {"duration": "10ba", "schedule": {"kind": "wsd", "warmup": "0.3dur", "decay": "8ba"}},
            "10 batches; found 3 batches of warm-up and 8 of decay",
        ),
    ],
)
def test_a_schedule_that_does_not_fit_is_known_before_the_data(train, found):
    """Spans in epochs wait for them."""
    assert TrainConfig.model_validate(train).schedule_problem(256) == f"must fit into the duration of {found}"
    train["duration"] = "1ep"
    assert TrainConfig.model_validate(train).schedule_problem(256) is None
