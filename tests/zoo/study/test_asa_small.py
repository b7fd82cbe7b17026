"""docs/studies/asa_small.md: its tables are those of the outcome files, and the study goes on from these."""

import json
import shutil
from itertools import combinations
from pathlib import Path

import pytest

from zoo.study.config import load_study
from zoo.study.expand import expand
from zoo.study.findings import findings
from zoo.study.runner import Runner
from zoo.study.slots import Slots
from zoo.study.speeds import NOT_KNOWN
from zoo.study.state import DONE, StudyFolder, refuse_other_settings
from zoo.study.statistics import differences, paired
from zoo.study.tables import tables

ROOT = Path(__file__).parents[3]
DOCS, RECIPES = ROOT / "docs" / "studies", ROOT / "recipes" / "studies" / "asa_small"
RATES = {
    "5e-4": "0.0005",
    "1e-3": "0.001",
    "2e-3": "0.002",
    "4e-3": "0.004",
    "3e-3": "0.003",
    "1e-2": "0.01",
    "3e-2": "0.03",
}


def losses(folder: str) -> dict[str, str]:
    """Run -> its final validation loss, as the page writes it."""
    files = (DOCS / folder).glob("*.json")
    return {path.stem: f"{json.loads(path.read_text())['results']['loss']:.3f}" for path in files}


def rows(heading: str) -> dict[str, list[str]]:
    """Learning rate -> cells of a table of the page."""
    table = (DOCS / "asa_small.md").read_text().split(heading)[1].split("\n\n")[0]
    lines = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return {name: cells for name, *cells in lines}


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, dict]]:
    """Name -> the findings with this architecture as the one that the others are compared with."""
    runner = Runner(expand(load_study(RECIPES / "study.yaml")), StudyFolder(DOCS / "asa_small"), Slots(1), scored=False)
    return {name: findings(runner, name) for name in runner.runs.architectures}


def architectures(found, against: str) -> dict[str, dict]:
    return {each["name"]: each for each in found[against]["results"]["architectures"]}


def signed(difference: dict) -> tuple[str, str, str]:
    """Difference, low and high of its corrected interval, as the page writes them."""
    return tuple(f"{difference[key]:+.3f}" for key in ("value", "holm_low", "holm_high"))


def test_the_table_of_the_choice_is_that_of_the_outcomes():
    names = [entry.name for entry in load_study(RECIPES / "study.yaml").config.recipes]
    table = rows(f"| learning rate | {' | '.join(f'`{name}`' for name in names)} |")
    shown = {
        f"{name}-lr={RATES[rate]}-seed1": cell
        for rate, cells in table.items()
        for name, cell in zip(names, cells, strict=True)
    }
    known = losses("asa_small/outcomes")
    assert shown == {run: loss for run, loss in known.items() if run.endswith("-seed1")}
    assert len(known) == 72
    page = (DOCS / "asa_small.md").read_text()
    chosen = {name: min(loss for run, loss in shown.items() if run.startswith(f"{name}-lr")) for name in names}
    assert all(f" **{loss}** |" in page for loss in chosen.values())


def test_the_table_of_losses_is_that_of_the_findings(found):
    table = rows("| | loss | difference from `full` | | spread | compute |")
    assert len(table) == 9
    for name, each in architectures(found, "full").items():
        mean, apart = each["mean_loss"], each["difference"]
        loss, difference, verdict, spread, compute = table[f"`{name}`"]
        assert loss == f"{mean['value']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"
        assert (spread, compute) == (f"{mean['sd']:.3f}", f"{each['speedup']['compute']:.2f}")
        if name != "full":
            assert difference == "{} ({} to {})".format(*signed(apart))
            assert verdict == ("better" if apart["decided"] else "undecided")


def test_the_table_of_pairs_is_that_of_the_findings(found):
    lines = (DOCS / "asa_small.md").read_text().split("| compared with | |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(lines) == 9
    for line in lines:
        against, name, value, interval, verdict = [cell.strip() for cell in line.split("|")[1:-1]]
        apart = architectures(found, against.strip("`"))[name.split("`")[1]]["difference"]
        assert (value, interval) == (signed(apart)[0], "{} to {}".format(*signed(apart)[1:]))
        assert verdict == ("undecided" if not apart["decided"] else "worse" if apart["value"] > 0 else "better")


def test_the_p_values_of_the_pairs_are_those_of_the_findings(found):
    """Those of two reports for one pair, and those of all 36 pairs corrected together."""
    page = (DOCS / "asa_small.md").read_text()
    p_holm = lambda against, name: architectures(found, against)[name]["difference"]["p_holm"]  # noqa: E731
    assert f"with `asa` it is decided (p = {p_holm('asa', 'nsa'):.3f})" in page
    assert f"`nsa` it is not (p = {p_holm('nsa', 'asa'):.3f})" in page
    names = list(found)
    by_seed = {
        name: {run["seed"]: run["loss"] for run in (json.loads(path.read_text())["results"] for path in counting(name))}
        for name in names
    }
    together = differences({pair: paired(*map(by_seed.get, pair)) for pair in combinations(names, 2)})
    better = {("full", name) for name in names if name not in ("full", "nsa", "alternating_gqa")}
    assert {pair for pair, each in together.items() if each.decided} == better | {("asa_one_query", "asa_window_512")}
    window, wide = (("window_full_3to1", "asa"), ("asa", "asa_window_512"))
    assert (
        f"p = {together[window].p_holm:.2f} instead of {p_holm('asa', 'window_full_3to1'):.3f}, "
        f"and {together[wide].p_holm:.2f} instead of {p_holm('asa', 'asa_window_512'):.3f}"
    ) in page


def test_the_table_of_scores_is_that_of_the_findings(found):
    table = rows("| | loss by position, nats | single needle, % | needle among many, % | common sense, bits per byte |")
    tasks = [
        ("loss_by_position", 1, 3),
        ("niah_single_1", 100, 1),
        ("niah_multikey_2", 100, 1),
        ("common_sense_bits", 1, 3),
    ]
    for name, each in architectures(found, "full").items():
        for cell, (task, unit, digits) in zip(table[f"`{name}`"], tasks, strict=True):
            metrics = next(metrics for label, metrics in each["scores"].items() if label.startswith(task))
            primary = next(metric for metric in metrics.values() if metric["primary"])
            better = name != "full" and primary["difference"]["decided"]
            assert cell == f"{unit * primary['mean']['value']:.{digits}f}{', better' * better}"


def test_the_table_of_costs_is_that_of_the_findings(found):
    table = rows(
        "| | KV cache, MiB: 1 x 2,048 | 16 x 8,192 | decoding: 1 x 2,048 | 16 x 2,048 | 16 x 8,192 | training "
        "| speed-up in time |"
    )
    shared = set()
    for name, each in architectures(found, "full").items():
        measured = found["full"]["measured"]["architectures"][name]
        decoding = {(row["batch"], row["context"]): row for row in measured["decoding"]}
        cache, large, *speeds, training, speedup = table[f"`{name}`"]
        assert cache == f"{each['cache_held_bytes'] / 2**20:.1f}"
        assert large == f"{decoding[16, 8192]['cache_held_bytes'] / 2**20:.0f}"
        wanted = [decoding[shape]["decode_tokens_per_s"] for shape in ((1, 2048), (16, 2048), (16, 8192))]
        assert speeds == [f"{speed:,.0f}" for speed in wanted]
        alone = measured["alone"]["tokens_per_s"]
        assert (training, speedup) == (f"{alone:,.0f}", f"{measured['speedup_time']:.2f}")
        if name != "asa_global_unrotated":  # with four runs on a GPU, where the others had eight
            shared.add(round(alone / measured["tokens_per_s"], 1))
    assert (min(shared), max(shared)) == (8.4, 8.8)


def counting(name: str) -> list[Path]:
    """The outcomes of an architecture that count."""
    chosen = "lr=0.002" if name == "nsa" else "lr=0.001"
    return [
        path for path in (DOCS / "asa_small" / "outcomes").glob(f"{name}-{chosen}-*.json") if "seed1" not in path.name
    ]


@pytest.fixture(scope="module")
def recall() -> dict[str, dict]:
    """Name -> what is found of it in the sweep of recall, against `full`; against `asa` below "asa"."""
    runs = expand(load_study(RECIPES.parent / "asa_recall" / "study.yaml"))
    runner = Runner(runs, StudyFolder(DOCS / "asa_recall"), Slots(1), scored=False)
    return {
        against: {each["name"]: each for each in findings(runner, against)["results"]["architectures"]}
        for against in ("full", "asa")
    }


def test_the_table_of_the_choice_of_recall_is_that_of_the_outcomes(recall):
    names = list(recall["full"])
    table = rows(f"| learning rate | {' | '.join(f'`{name}`' for name in names)} |")
    known = losses("asa_recall/outcomes")
    assert len(known) == 49
    assert list(table) == ["1e-3", "3e-3", "1e-2", "3e-2"]
    for rate, cells in table.items():
        for name, cell in zip(names, cells, strict=True):
            assert float(cell) == pytest.approx(float(known[f"{name}-lr={RATES[rate]}-seed1"]), abs=6e-4)
    page = (DOCS / "asa_small.md").read_text().split("### Recall")[1]
    for column, (name, each) in enumerate(recall["full"].items()):
        chosen = next(rate for rate in table if f"lr={RATES[rate]}" == each["chosen"])
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {chosen} |")]
        assert "**" in line.split("|")[2 + column], name


def test_the_table_of_recall_is_that_of_the_findings(recall):
    table = rows("| | recalled, % | seeds 2, 3, 4 | difference from `full` | | KV cache, KiB |")
    assert list(table) == [f"`{name}`" for name in recall["full"]]
    for name, each in recall["full"].items():
        ((_, metrics),) = each["scores"].items()
        found = metrics["accuracy"]
        low, mean, high = (100 * found["mean"][key] for key in ("low", "value", "high"))
        seeds = [next(iter(run["scores"].values()))["accuracy"]["value"] for run in each["runs"]]
        shares = ", ".join(f"{100 * share:.1f}" for share in seeds)
        shown, by_seed, difference, verdict, cache = table[f"`{name}`"]
        assert (shown, by_seed) == (f"{mean:.1f} ({low:.0f} to {high:.0f})", shares)
        assert cache == f"{each['cache_held_bytes'] / 1024:.0f}"
        if name != "full":
            points = [100 * found["difference"][key] for key in ("value", "holm_low", "holm_high")]
            assert difference == "{:+.1f} ({:+.1f} to {:+.1f})".format(*points)
            assert verdict == ("worse" if found["difference"]["decided"] else "undecided")


def test_what_the_page_says_of_asa_and_recall(recall):
    accuracy = lambda each: next(iter(each["scores"].values()))["accuracy"]["difference"]  # noqa: E731
    page = " ".join((DOCS / "asa_small.md").read_text().split())
    loss = recall["full"]["asa"]["difference"]
    assert loss["decided"]
    bounds = f"{loss['value']:.2f} nats ({loss['holm_low']:.2f} to {loss['holm_high']:.2f}, p = {loss['p_holm']:.3f})"
    assert f"by {bounds}" in page
    nsa, mixed = (accuracy(recall["asa"][name]) for name in ("nsa", "window_full"))
    assert f"({100 * nsa['value']:.1f} and {100 * mixed['value']:.1f} points more, both decided" in page
    others = {name: each for name, each in recall["asa"].items() if name != "asa"}
    assert {name for name, each in others.items() if accuracy(each)["decided"]} == {"nsa", "window_full"}
    assert {name for name, each in others.items() if each["difference"]["decided"]} == {"full", "nsa", "window_full"}


def test_the_p_values_of_all_pairs_of_recall_are_those_of_the_findings(recall):
    """All 21 pairs corrected together, in loss and in recall."""
    page = " ".join((DOCS / "asa_small.md").read_text().split())
    runs = {name: each["runs"] for name, each in recall["full"].items()}
    value = lambda run: next(iter(run["scores"].values()))["accuracy"]["value"]  # noqa: E731
    loss = {name: {run["seed"]: run["loss"] for run in each} for name, each in runs.items()}
    share = {name: {run["seed"]: value(run) for run in each} for name, each in runs.items()}
    pairs = list(combinations(runs, 2))
    in_loss, in_recall = (
        differences({pair: paired(*map(by_seed.get, pair)) for pair in pairs}) for by_seed in (loss, share)
    )
    decided = [in_loss[pair].p_holm for pair in (("window_full", "asa"), ("nsa", "asa"), ("full", "asa"))]
    assert max(decided) < 0.05
    undecided = [in_recall[pair].p_holm for pair in (("window_full", "asa"), ("nsa", "asa"))]
    assert (
        f"stay decided (p = {min(decided):.3f} to {max(decided):.3f}), and the two in recall do not "
        f"(p = {undecided[0]:.3f} and {undecided[1]:.3f})"
    ) in page


def test_what_the_page_says_of_the_speeds_of_the_parts(found):
    page = " ".join((DOCS / "asa_small.md").read_text().split())
    full, asa, windows = (
        found["full"]["measured"]["architectures"][name]["alone"]["tokens_per_s"]
        for name in ("full", "asa", "window_full_3to1")
    )
    assert f"`asa` trains at {asa / full:.2f} times the tokens/s of full attention" in page
    assert f"train {windows / asa:.2f} times as fast as `asa`" in page


@pytest.mark.parametrize(
    ("file", "folder", "done"),
    [
        ("asa_small/study.yaml", "asa_small/outcomes", 72),
        ("asa_small/study_first.yaml", "asa_small/first", 14),
        ("asa_recall/study.yaml", "asa_recall/outcomes", 49),
    ],
)
def test_the_study_goes_on_from_the_outcomes(tmp_path, file, folder, done):
    """A change of the identity of runs would refuse them; hours of training would be lost."""
    shutil.copytree(DOCS / folder, tmp_path / "outcomes")
    runner = Runner(expand(load_study(RECIPES.parent / file)), StudyFolder(tmp_path), Slots(1), scored=False)
    refuse_other_settings(runner.folder, runner.all())
    assert sum(runner.state(run).name == DONE for run in runner.all()) == done


def test_the_outcomes_of_the_whole_study_have_the_same_rows():
    """Those that the script's text and this version's tokenizer give; study.yaml cannot go on with others."""
    files = (DOCS / "asa_small" / "outcomes").glob("*.json")
    assert {json.loads(path.read_text())["results"]["data"] for path in files} == {"63aed7707b581ebf"}


def test_the_speeds_that_are_compared_were_measured_alone(found):
    """The version of these runs did not record how many were on a GPU: 8, and 4 for the last architecture."""
    measured = found["full"]["measured"]
    assert [run["runs_on_device"] for each in measured["runs"].values() for run in each] == [None] * 36
    assert measured["comparison"] == {"basis": "alone", "not_comparable": {}}
    assert measured["notes"] == []
    shown = {title: rows for title, _, rows in tables(found["full"])}
    assert [row[4] for row in shown["cost"]] == [
        "0.97x",
        "1.44x",
        "0.82x",
        "1.21x",
        "1.22x",
        "0.96x",
        "1.28x",
        "1.10x",
        "1.25x",
    ]
    assert [row[-1] for row in shown["training speed"]] == ["not known"] * 9


def test_without_them_no_speeds_of_these_runs_are_compared(tmp_path):
    shutil.copytree(DOCS / "asa_small" / "outcomes", tmp_path / "outcomes")
    runner = Runner(expand(load_study(RECIPES / "study.yaml")), StudyFolder(tmp_path), Slots(1), scored=False)
    measured = findings(runner)["measured"]
    others = list(measured["architectures"])[1:]
    assert measured["comparison"] == {"basis": "runs", "not_comparable": dict.fromkeys(others, NOT_KNOWN)}
    assert {measured["architectures"][name]["speedup_time"] for name in others} == {None}
    assert "zoo study run measures each of them alone" in measured["notes"][0]
