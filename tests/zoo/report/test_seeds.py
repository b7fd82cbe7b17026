"""Runs that differ only by seed are one column of `zoo compare`, with means and intervals over the seeds."""

import json
from pathlib import Path

import pytest
from scipy import stats

from zoo.data.identity import DataRecord, SourceRecord
from zoo.files import write_sealed_json
from zoo.report.columns import load_columns
from zoo.report.compare import Request, compare
from zoo.report.seeds import grouped

LOSSES = {1: [4.0, 3.0, 2.5, 2.0], 2: [4.1, 3.2, 2.6, 2.2], 3: [3.9, 3.1, 2.4, 2.1]}


@pytest.fixture(scope="module")
def seeds(run):
    """Three runs of a recipe with seeds 1, 2 and 3."""
    return [run("full", losses, f"full_s{seed}", (f"seed={seed}",)) for seed, losses in LOSSES.items()]


@pytest.fixture(scope="module")
def other(run):
    return run("nsa", [4.0, 3.0, 2.5, 1.9], "nsa_s1", ("seed=1",))


def test_three_seeds_are_one_column_with_the_t_interval(seeds, other, capsys):
    data = json.loads(compare(Request([*seeds, other], json=True)))
    assert [column["label"] for column in data["columns"]] == ["tiny_full (3 seeds)", "nsa_s1"]
    final = data["columns"][0]["run"]["final"]
    values = [losses[-1] + 0.1 for losses in LOSSES.values()]
    assert final["loss"] == pytest.approx(2.2)
    expected = stats.t.interval(0.95, 2, loc=2.2, scale=stats.sem(values))
    assert (final["intervals"]["loss"]["low"], final["intervals"]["loss"]["high"]) == pytest.approx(expected)
    assert list(data["columns"][0]["run"]["seeds"]) == ["1", "2", "3"]
    assert data["columns"][0]["run"]["validation"][-1] == [4 * 4096, 2.0, pytest.approx(2.2)]
    text = compare(Request([*seeds, other]))
    half = (expected[1] - expected[0]) / 2
    assert f"2.2000 ±{half:.4f}" in text
    assert "Other seeds: nsa_s1 against tiny_full (3 seeds)." in " ".join(text.split())


def test_a_group_alone_can_be_looked_at_and_has_a_page(seeds, tmp_path):
    page = tmp_path / "page.html"
    text = compare(Request(seeds, html=page, maps=False))
    assert "tiny_full (3 seeds)" in text
    assert "<h1>tiny_full (3 seeds)</h1>" in page.read_text()
    curves, costs = 2 * 3 * 2, 2  # training and validation, on three axes of two kinds; cache and FLOPs
    assert page.read_text().count('class="curve-0"') == curves + costs


def test_what_differs_in_more_than_the_seed_stays_apart(run, seeds):
    other = run("full", LOSSES[1], "full_lr", ("seed=4", "train.optimizer.lr=1e-2"))
    assert [len(column.repeats) for column in grouped(load_columns([*seeds, other]))] == [2, 0]


def test_the_same_seed_twice_and_recipes_stay_apart(run, seeds, tiny, tmp_path):
    again = run("full", LOSSES[1], "again", ("seed=1",))
    assert [column.repeats for column in grouped(load_columns([seeds[0], again, seeds[1]]))] == [(), (), ()]
    recipe = tmp_path / "seven.yaml"
    recipe.write_text(f"extends: {tiny('full')}\nseed: 7\n")
    assert len(grouped(load_columns([tiny("full"), str(recipe)]))) == 2


@pytest.mark.parametrize(("contents", "groups"), [(("a", "a"), 1), (("a", "b"), 2)])
def test_runs_are_one_column_only_on_the_same_data(run, contents, groups):
    """Each data.json has an id of its run, as a training writes it."""
    paths = [Path(run("full", LOSSES[seed], f"{contents}{seed}", (f"seed={seed}",))) for seed in (1, 2)]
    for path, content in zip(paths, contents, strict=True):
        source = SourceRecord(key="source", source="text", documents=1, bytes=2, tokens=3, rows=4, content=content)
        record = DataRecord(
            version="1", run=path.name, format=1, seq_len=64, tokenizer=None, train=(source,), validation=()
        )
        write_sealed_json(path / "data.json", record.model_dump(mode="json"))
        assert DataRecord.read(path / "data.json").run == path.name
    # A recipe.yaml beside a data.json must be sealed; those of the fixture are.
    assert len(grouped(load_columns(list(map(str, paths))))) == groups


def test_two_groups_of_one_name_are_told_apart_by_a_folder(run, seeds):
    slow = [run("full", LOSSES[seed], f"slow_s{seed}", (f"seed={seed}", "train.optimizer.lr=1e-4")) for seed in (1, 2)]
    labels = [column.label for column in grouped(load_columns([*seeds[:2], *slow]))]
    assert labels == ["full_s1 and 1 other seed", "slow_s1 and 1 other seed"]


def test_a_diverged_seed_is_in_no_mean_and_is_named(run):
    good = [run("full", LOSSES[seed], f"d{seed}", (f"seed={seed}",)) for seed in (1, 2)]
    bad = run("full", [4.0, float("inf")], "d3", ("seed=3",))
    data = json.loads(compare(Request([*good, bad], json=True)))
    final = data["columns"][0]["run"]["final"]
    assert final["intervals"]["loss"]["n"] == 2
    assert final["loss"] == pytest.approx(2.2)
    assert any("diverged: its loss is not a finite number at batch 2" in note for note in data["notes"])
