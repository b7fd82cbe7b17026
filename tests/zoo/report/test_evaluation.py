"""Scores of `zoo eval` beside the losses of a comparison."""

import json
from dataclasses import replace
from pathlib import Path

from tests.zoo.evaluation.subjects import Guesser
from zoo.evaluation.results import ResultFile, read_results
from zoo.evaluation.run import evaluate
from zoo.report.compare import Request, compare
from zoo.report.runs import _evaluation
from zoo.runs.folder import RunFolder

LABEL = "copy(rows=10)"


def evaluated(run: str) -> str:
    """A run with an eval.json of a model that guesses."""
    model = Guesser()
    model.digest = "0" * 64
    evaluate(model, ["copy"], rows=10, output=Path(run) / "eval.json")
    return run


def test_scores_stand_beside_the_losses_with_interval_and_chance(run, tmp_path):
    first, other = (evaluated(run(name, [3.0, 2.5])) for name in ("full", "window"))
    text = compare(Request([first, other]))
    assert "scores, with the 95% interval" in text
    line = next(line for line in text.splitlines() if f"{LABEL}: accuracy, chance 0.8%" in line)
    assert line.count("±") == 2
    found = json.loads(compare(Request([first, other], json=True)))
    numbers = found["columns"][0]["run"]["evaluation"][LABEL]["accuracy"]
    assert {"value", "low", "high", "chance", "stderr"} <= set(numbers)
    page = tmp_path / "page.html"
    compare(Request([first, other], html=page, maps=False))
    assert f"{LABEL}: accuracy, chance 0.8%" in page.read_text()


def test_scores_of_two_versions_or_of_other_rows_are_not_mixed(run, monkeypatch):
    first, other = (evaluated(run(name, [3.0, 2.5])) for name in ("full", "window"))
    assert "Other rows" not in compare(Request([first, other]))
    model = Guesser()
    model.digest = "0" * 64
    evaluate(model, [{"task": "copy", "vocab_size": 64}], rows=10, output=Path(other) / "eval.json")
    kept = ResultFile(Path(other) / "eval.json")
    [_, made] = read_results(kept.path)
    kept.add(replace(made, label=LABEL))
    text = " ".join(compare(Request([first, other])).split())
    assert f"Other rows in {LABEL}: the runs were scored on different rows, because their tokenizers, contexts" in text
    kept.add(replace(made, label=LABEL, version=0))
    lines = compare(Request([first, other])).splitlines()
    for name in (f"{LABEL}: accuracy, chance 0.8%", f"{LABEL}, version 0: accuracy, chance 1.6%"):
        assert next(line for line in lines if name in line).count("±") == 1


def test_scores_of_other_weights_are_left_out(run):
    folder = RunFolder(evaluated(run("full", [3.0, 2.5])))
    assert set(_evaluation(folder, {"sha256": "0" * 64})) == {LABEL}
    assert _evaluation(folder, {"sha256": "1" * 64}) == {}
