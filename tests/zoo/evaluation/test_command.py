"""`zoo eval`: what it prints, and one line for every mistake."""

import copy
import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from tests.zoo.evaluation.subjects import Guesser
from zoo.cli import run as zoo
from zoo.data.stored import StoredRow
from zoo.data.tokenizers import Bytes
from zoo.errors import ZooError
from zoo.evaluation.asking import plan
from zoo.evaluation.command import parse_lengths, parse_tasks
from zoo.evaluation.errors import EvaluationError
from zoo.evaluation.registry import GROUPS, make_tasks, names, register, task_class
from zoo.evaluation.results import ResultFile, read_results
from zoo.evaluation.run import evaluate
from zoo.evaluation.table import as_table
from zoo.evaluation.task import Choice, Labelled


def test_the_table_says_what_keeps_scores_from_being_compared():
    text = Guesser(vocab_size=257, max_len=128, tokenizer=Bytes())
    results = {
        "runs/a": evaluate(Guesser(), ["copy", {"task": "induction", "vocab_size": 64}], rows=3),
        "runs/b": evaluate(text, ["copy", {"task": "induction", "vocab_size": 64}], rows=3, lengths=[64]),
    }
    results = {name: [replace(each, label=each.task) for each in found] for name, found in results.items()}
    said = as_table(results).splitlines()
    assert any(
        line.startswith("copy: the models were given different rows, because their tokenizers, ") for line in said
    )
    assert "induction: nats are per token, and the tokenizers differ; compare bits_per_byte where it is given" in said
    same = evaluate(Guesser(), ["copy"], rows=3)
    assert "different rows" not in as_table({"runs/a": same, "runs/b": same})


def test_fewer_rows_than_were_asked_for_are_said():
    [result] = evaluate(Guesser(), ["copy"], rows=3)
    few = replace(result, rows=2, settings=result.settings | {"lengths": [32]})
    assert "a: copy(rows=3): 2 rows, all that there are; 3 were asked for" in as_table({"runs/a": [few]})
    assert "asked for" not in as_table({"runs/a": [result]})


def test_the_list_names_every_task_and_group(capsys):
    assert zoo(["eval", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in [*names(), *GROUPS])
    assert zoo(["eval", "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [task["task"] for task in found["tasks"]] == names()
    assert all(task["measures"] and task["rows"] and task["metrics"] for task in found["tasks"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one run folder"),
        (["runs/none"], "--tasks: name tasks"),
        (["runs/none", "--tasks", "mqra"], "unknown task 'mqra'.*Did you mean 'mqar'"),
        (["runs/none", "--tasks", "{task: mqar, pears: 1}"], "task mqar: unknown key 'pears'.*Did you mean 'pairs'"),
        (["runs/none", "--tasks", "{task: mqar"], "--tasks: not names or mappings in YAML"),
        (["runs/none", "--tasks", "[1]"], "must be a name, or a mapping with the key task"),
        (["runs/none", "--tasks", "mqar", "--seq-len", "many"], "--seq-len: must be whole numbers"),
        (["runs/none", "--tasks", "piqa", "--seq-len", "128"], "--seq-len: piqa has texts of its own length"),
        (["runs/none", "--tasks", "mqar"], "runs/none: no such folder"),
        (["a", "b", "--tasks", "mqar", "-o", "x.json"], "--output: is for one model"),
        (["runs/none", "--tasks", "mqar,,copy"], "--tasks: not names or mappings in YAML: 'mqar,,copy': .* found ','"),
        (["runs/none", "--tasks", "copy", "--plot", "x.svg"], "--plot: draws the needles .* none of them is among"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert zoo(["eval", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """Two folders that look like runs, in the working directory; the models that were loaded to be scored."""
    loaded = []
    monkeypatch.chdir(tmp_path)
    for folder in ("a/run", "b/run"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.yaml").write_text("")

    def load(path, device, dtype):
        loaded.append(path)
        return Guesser()

    monkeypatch.setattr("zoo.evaluation.subjects.load_subject", load)
    return loaded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a/run", "b/none"], "b/none: no such folder"),
        (["a/run", "b"], "b: neither a run of the zoo"),
        (["a/run", "-o", "none/x.json"], "none/x.json: cannot be written: none: no such folder; name another file"),
        (["a/run", "b/run"], "b/run/eval.json: damaged"),
    ],
)
def test_mistakes_are_told_before_anything_is_scored(scored, arguments, message, capsys):
    with open("b/run/eval.json", "w") as file:
        file.write("{")
    assert zoo(["eval", *arguments, "--tasks", "copy", "--rows", "2"]) in (1, 2)
    assert message in capsys.readouterr().err
    assert scored == []


def test_folders_of_one_name_are_told_apart_and_one_folder_is_scored_once(scored, capsys):
    assert zoo(["eval", "a/run", "b/run", "a/run/", "--tasks", "copy", "--rows", "2"]) == 0
    head = capsys.readouterr().out.splitlines()[0]
    assert head.split() == ["task", "metric", "chance", "a/run", "b/run"]
    assert scored == ["a/run", "b/run"]


def test_names_and_mappings_are_read_as_in_yaml():
    assert parse_tasks("mqar, {task: copy, span: 4}") == ["mqar", {"task": "copy", "span": 4}]
    assert parse_lengths("128, 4096") == (128, 4096)


def test_every_task_states_what_it_measures():
    for name in names():
        task = task_class(name)
        assert task.model_fields["task"].default == name
        assert task.title
        assert task.measures
        assert task.metrics
        assert (task.__doc__ or "").strip()
    assert {name for tasks in GROUPS.values() for name in tasks} <= set(names())


def test_a_group_is_its_tasks_once():
    labels = [task.label for task in make_tasks(["recall", "mqar"])]
    assert labels == list(GROUPS["recall"])


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="task 'mqar' is taken by"):
        register("mqar", "somewhere:Else")


def test_a_table_shows_value_interval_and_chance():
    results = evaluate(Guesser(), ["mqar"], rows=5)
    text = as_table({"runs/a": results, "runs/b": results})
    line = next(line for line in text.splitlines() if line.startswith("mqar"))
    assert "accuracy" in line
    assert "0.8%" in line  # 1 / 128
    assert line.count(" to ") == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "results": [{}]}', "\x00"])
def test_a_damaged_result_file_is_named(content, tmp_path):
    path = tmp_path / "eval.json"
    path.write_text(content)
    with pytest.raises(Exception, match=r"eval\.json") as caught:
        read_results(path)
    assert "Traceback" not in str(caught.value)


OTHER_NUMBERS = [
    *(
        (key, value)
        for key in ("value", "low", "rows", "chance")
        for value in ('"0.5"', "[1]", "true", "1" + "0" * 400)
    ),
    ("value", "null"),
    ("rows", "null"),
    ("rows", "-1"),
]
OTHER_FIELDS = [
    *((key, value) for key in ("label", "task", "model", "settings") for value in (None, [], 1)),
    *((key, value) for key in ("metrics", "by", "version", "truncated") for value in (None, [], "x", {"a": {"b": 1}})),
    ("metrics", {}),
]


@pytest.mark.parametrize(("key", "value"), OTHER_NUMBERS)
def test_a_number_of_another_kind_is_named(key, value, tmp_path):
    path = tmp_path / "eval.json"
    found = asdict(evaluate(Guesser(), ["copy"], rows=4)[0])
    found["metrics"]["accuracy"][key] = "@"
    path.write_text(json.dumps({"format": 1, "results": [found]}).replace('"@"', value))
    with pytest.raises(ZooError, match=rf"eval\.json: damaged: {key}: "):
        read_results(path)


@pytest.mark.parametrize(("key", "value"), OTHER_FIELDS)
def test_a_field_of_another_kind_is_named(key, value, tmp_path):
    path = tmp_path / "eval.json"
    found = asdict(evaluate(Guesser(), ["copy"], rows=4)[0])
    path.write_text(json.dumps({"format": 1, "results": [found | {key: value}]}))
    with pytest.raises(ZooError, match=r"eval\.json: damaged: "):
        read_results(path)


def test_results_of_other_examples_are_not_taken(tmp_path, monkeypatch):
    """A text that has changed since under the same name gives other examples."""
    model, kept = Guesser(), tmp_path / "eval.json"
    model.digest = "one"
    first = evaluate(model, ["copy"], rows=4, output=kept)[0]
    assert evaluate(model, ["copy"], rows=4, output=kept)[0] == first
    made = task_class("copy").examples
    monkeypatch.setattr(task_class("copy"), "examples", lambda self, model: list(made(self, model))[::-1])
    second = evaluate(model, ["copy"], rows=4, output=kept)[0]
    assert second.examples_hash != first.examples_hash
    assert read_results(kept) == [second]


@pytest.mark.parametrize("where", ["metrics", "by"])
def test_a_score_that_is_not_finite_is_refused_and_the_others_are_kept(tmp_path, where):
    """A model that overflows in half precision: the file could not be read again."""
    kept = ResultFile(tmp_path / "eval.json")
    first = evaluate(Guesser(), ["copy"], rows=4)[0]
    kept.add(first)
    broken = copy.deepcopy(replace(first, label="other", by={"length": {"8": {"accuracy": first.primary[1]}}}))
    (broken.metrics if where == "metrics" else broken.by["length"]["8"])["accuracy"]["value"] = float("nan")
    with pytest.raises(EvaluationError, match=r"^other: accuracy is nan, because .* is not finite; use --dtype fp32"):
        kept.add(broken)
    assert read_results(tmp_path / "eval.json") == [first]


@pytest.mark.parametrize("task", ["copy", "niah_multikey_2"])
def test_likelihoods_that_are_no_numbers_are_no_answer(monkeypatch, task):
    """A model with broken weights: no option is likelier than another, and token 0 is no prediction."""
    model = Guesser(vocab_size=257, max_len=600, tokenizer=Bytes())
    monkeypatch.setattr(
        type(model), "logits", lambda self, t, row_N, p, s=None: torch.full((len(row_N), 257), math.nan)
    )
    with pytest.raises(EvaluationError, match=rf"^{task}: row 0: a log-likelihood is not finite, .*; use --dtype fp32"):
        evaluate(model, [{"task": task, "rows": 2, **({"generate": False} if "niah" in task else {})}])


def test_a_text_that_is_empty_in_tokens_is_refused(monkeypatch):
    """A tokenizer that drops the characters of a context: there is no place to ask at."""
    model = Guesser(vocab_size=257, max_len=600, tokenizer=Bytes())
    examples = [Choice((("a", "b"), ("", "b")), 0), Choice((((), (5,)), ((3,), (5,))), 0)]
    with pytest.raises(EvaluationError, match="row 1: the text before an option has no tokens"):
        plan(model, examples)
    with pytest.raises(EvaluationError, match="row 0 has no label to predict: every label is -100"):
        plan(model, [Labelled(np.arange(4), np.full(4, -100))])


def test_documents_are_counted_over_rows_that_go_on_and_rows_that_do_not():
    class Rows:
        token_bytes = name = None

        def rows(self):
            for tokens, starts, ends in (
                ([1, 2, 3, 4], [0, 2], False),
                ([4, 5, 6, 7], [0], False),
                ([1, 2, 3, 4], [0], False),
                ([4, 9, 9, 1], [0, 1], True),
                ([1, 5, 5, 5], [0], False),
            ):
                numbers = np.array(tokens)
                yield StoredRow(numbers[:-1], numbers[1:], np.array(starts), ends)
            yield StoredRow(np.arange(3), np.full(3, -100), np.zeros(1, np.int64))  # labels of its own, none of them

    model = Guesser()
    model.held_out = Rows()
    [result] = evaluate(model, ["perplexity"])
    assert {key: numbers["nats"]["rows"] for key, numbers in result.by["document"].items()} == {
        "0": 1,
        "1": 2,
        "2": 2,
        "3": 1,
        "4": 1,
    }
    assert result.rows == 5


def test_results_of_other_weights_are_not_taken(tmp_path):
    model = Guesser()
    model.digest = "one"
    kept = tmp_path / "eval.json"
    first = evaluate(model, ["copy"], rows=4, output=kept)
    [task] = make_tasks(["copy"], rows=4)
    assert ResultFile(kept).find(task, first[0].model) == first[0]
    assert ResultFile(kept).find(task, first[0].model | {"digest": "other"}) is None
    assert ResultFile(kept).find(task, first[0].model | {"dtype": "bf16"}) is None
    assert ResultFile(kept).find(task, first[0].model | {"config": "of an edited model.yaml"}) is None


def test_needles_and_losses_are_drawn(tmp_path):
    from zoo.data.tokenizers import Bytes
    from zoo.evaluation.plots import plot

    model = Guesser(vocab_size=257, max_len=1024, tokenizer=Bytes())
    task = {"task": "niah_single_1", "lengths": [600, 900], "depths": 3, "rows": 3, "generate": False}
    results = {"runs/a": evaluate(model, [task])}
    plot(results, tmp_path / "needles.svg")
    drawn = (tmp_path / "needles.svg").read_text()
    assert "depth of the needle" in drawn or "<path" in drawn
    with pytest.raises(EvaluationError, match="--plot: must end in"):
        plot(results, tmp_path / "needles.txt")
    with pytest.raises(EvaluationError, match="none of them is among the tasks"):
        plot({"runs/a": evaluate(Guesser(), ["copy"], rows=2)}, tmp_path / "copy.png")
