"""The metric by which each task is judged: a study decides on it alone, so a change of it changes what studies say."""

import pytest

from zoo.evaluation.registry import names, task_class
from zoo.evaluation.results import Result

OTHER_THAN_ACCURACY = {
    "common_sense_bits": "bits_per_byte",
    "loss_by_position": "nats",
    "perplexity": "nats",
    **dict.fromkeys(
        [name for name in names() if name.startswith("niah_")]
        + ["variable_tracking", "common_words", "frequent_words"],
        "rank_accuracy",
    ),
}


@pytest.mark.parametrize("name", names())
def test_every_task_names_its_primary_metric(name):
    task = task_class(name)
    assert task.primary().name == OTHER_THAN_ACCURACY.get(name, "accuracy")
    assert f"Primary metric: `{task.primary().name}`" in task.about.equations


def test_a_result_has_the_same_primary_metric():
    metrics = {metric.name: {"value": 0.5} for metric in task_class("mqar").metrics}
    result = Result("mqar", "mqar", {}, 1, 0, 1, "0" * 16, metrics)
    assert result.primary[0] == task_class("mqar").primary().name
