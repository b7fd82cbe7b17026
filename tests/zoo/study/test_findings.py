"""What a study concludes from synthetic results: one architecture better by construction, two equal; failures."""

import functools
import random
import re

import pytest

from tests.zoo.study.synthetic import finish_study
from zoo.evaluation.registry import task_class
from zoo.study.comparing import _mean
from zoo.study.config import StudyError
from zoo.study.findings import _speedups, findings
from zoo.study.report import as_markdown, as_text, write_report
from zoo.study.runner import Runner
from zoo.study.slots import Slots
from zoo.study.state import StudyFolder
from zoo.study.tables import NO_VALUE
from zoo.study.tables import _speedups as speedup_cells

LRS = [1e-3, 2e-3, 4e-3]
BEST = {"tiny_full": 2e-3, "same": 2e-3, "better": 1e-3}
GAIN = {"tiny_full": 0.0, "same": 0.0, "better": -0.1}
THREE = ["full", {"name": "same", "recipe": "FULL"}, {"name": "better", "recipe": "WINDOW"}]


def entries():
    from tests.zoo.study.conftest import TINY

    files = {"FULL": str(TINY / "full.yaml"), "WINDOW": str(TINY / "window.yaml")}
    return [each if isinstance(each, str) else each | {"recipe": files[each["recipe"]]} for each in THREE]


def toy_loss(repetition: int):
    """A loss with a noise of each seed that all architectures share, one of each run, and a best learning rate."""

    def loss(run) -> float:
        shared = random.Random(f"{repetition} {run.seed}").gauss(0, 0.05)
        own = random.Random(f"{repetition} {run.id}").gauss(0, 0.01)
        away = abs(LRS.index(run.point.value("train.optimizer.lr")) - LRS.index(BEST[run.architecture]))
        return 3.0 + GAIN[run.architecture] + 0.2 * away + shared + own

    return loss


TASKS = ["mqar", "copy", "induction", "compositional_mqar"]


def toy_scores(repetition: int):
    """Scores of equal architectures, but for the accuracy of mqar, in which `better` is better."""

    def noisy(run, *what: str) -> float:
        return random.Random(f"{repetition} {run.id} {what}").gauss(0.5, 0.01)

    def scores(run) -> dict:
        found = {task: {m: noisy(run, task, m) for m in ("accuracy", "rows_right", "nats")} for task in TASKS}
        found["mqar"]["accuracy"] += 0.3 * (run.architecture == "better")
        return found

    return scores


@pytest.fixture
def toy(make_runner, tmp_path, monkeypatch):
    """`toy(repetition)`: what is found in a toy study with noise of its own."""
    options = {"recipes": entries(), "seeds": [0, 1, 2, 3, 4], "grid": {"train.optimizer.lr": LRS}}
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # thousands of small files, which no crash threatens
    with_tasks = functools.cache(lambda tasks: make_runner(**options, tasks=list(tasks)).runs)

    def make(repetition: int, tasks=()) -> dict:
        runs = with_tasks(tuple(tasks))
        folder = StudyFolder(tmp_path / f"out{repetition}")
        finish_study(Runner(runs, folder, Slots(1)), toy_loss(repetition), toy_scores(repetition))
        return findings(Runner(runs, folder, Slots(1)))

    return make


@pytest.mark.slow
def test_the_better_one_is_found_and_equal_ones_are_not_told_apart(toy):
    """Over 20 repetitions the better one is found each time; a false alarm comes no more often than 5%.

    So it is with the loss, and with the primary metrics of four tasks.
    """
    outcomes, alarms = [], 0
    for repetition in range(20):
        results = toy(repetition, TASKS)["results"]
        decided = [
            (each["name"], task)
            for each in results["architectures"]
            for task, metrics in each["scores"].items()
            for numbers in metrics.values()
            if numbers["difference"] and numbers["difference"]["decided"]
        ]
        assert ("better", "mqar") in decided
        alarms += decided != [("better", "mqar")]
        assert [each["chosen"] for each in results["architectures"]] == ["lr=0.002", "lr=0.002", "lr=0.001"]
        outcomes.append([each["outcome"] for each in results["verdicts"]])
    assert all(first == "first" for first, _, _ in outcomes)
    assert [better for _, _, better in outcomes] == ["better"] * 20
    assert sum(same != "undecided" for _, same, _ in outcomes) <= 1
    assert alarms <= 1


def test_the_sentences_say_it_and_name_the_edge_of_the_grid(toy):
    found = toy(100)
    first, same, better = (each["sentence"] for each in found["results"]["verdicts"])
    assert first.startswith("tiny_full: validation loss ")
    assert "4 seeds at lr=0.002; the others are compared with it." in first
    assert same.startswith("same: undecided against tiny_full: the difference, ")
    assert "may be zero" in same
    assert better.startswith("better: better than tiny_full by 0.")
    assert "after Holm" in better
    by, low, high = map(float, re.match(r".* by ([\d.]+) \(([\d.]+) to ([\d.]+); p = ", better).groups())
    assert low < by < high
    notes = found["results"]["notes"]
    assert [n for n in notes if "edge of the grid" in n] == [
        "better: the chosen train.optimizer.lr = 0.001 is at the edge of the grid; the best value may lie outside."
    ]
    text = as_text(found)
    assert text.index("better than tiny_full") < text.index("note:") < text.index("quality")
    assert "contains 0" in text
    markdown = as_markdown(found)
    assert "| quality | loss |" in markdown
    assert "contains 0" in markdown


def test_seeds_that_choose_are_in_no_mean(toy):
    each = toy(3)["results"]["architectures"][0]
    assert [run["seed"] for run in each["runs"]] == [1, 2, 3, 4]
    assert each["mean_loss"]["n"] == 4
    assert each["mean_loss"]["value"] == pytest.approx(sum(run["loss"] for run in each["runs"]) / 4)
    assert {run["seed"] for run in each["choosing_runs"]} == {0}


def test_false_alarms_are_no_more_frequent_than_5_percent():
    """The same noise without files, 1,000 times; three standard errors allowed."""
    from zoo.study.statistics import differences, paired

    alarms = 0
    draw = random.Random(7)
    for _ in range(1000):
        shared = [draw.gauss(3, 0.05) for _ in range(4)]
        first, same, better = ({s: v + draw.gauss(gain, 0.01) for s, v in enumerate(shared)} for gain in (0, 0, -0.1))
        pairs = {"same": paired(first, same), "better": paired(first, better)}
        alarms += differences(pairs)["same"].decided
    assert alarms / 1000 <= 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5


def test_a_diverged_point_is_not_chosen_and_a_diverged_run_is_named(make_runner):
    options = {"grid": {"train.optimizer.lr": LRS}, "seeds": [1, 2, 3, 4]}

    def loss(run):
        if run.point.value("train.optimizer.lr") == 4e-3:
            return None
        return None if (run.architecture, run.seed) == ("tiny_window", 3) else 3.0 + 0.01 * run.seed

    finish_study(make_runner(**options), loss)
    results = findings(make_runner(**options))["results"]
    full, window = results["architectures"]
    assert full["losses_of_choice"]["lr=0.004"] is None
    assert window["mean_loss"]["n"] == 2
    assert window["difference"]["n"] == 2
    assert "2 of 3 seeds" in results["verdicts"][1]["sentence"]
    assert any("tiny_window-lr=0.001-seed3 diverged: loss is nan" in note for note in results["notes"])


def test_a_choice_without_a_failed_run_is_said(make_runner):
    """It failed for a full disk, say: unlike one that diverged, it could have been the best."""
    options = {"seeds": [1, 2, 3], "grid": {"train.optimizer.lr": LRS}, "recipes": ["full"]}
    runner = make_runner(**options)
    runner.folder.make()
    runner.folder.fail(next(iter(runner.runs.choosing())), "No space left on device")
    finish_study(runner, lambda run: 3.0 + run.point.value("train.optimizer.lr"))
    found = findings(make_runner(**options))["results"]
    assert found["architectures"][0]["chosen"] == "lr=0.002"
    assert "tiny_full: chosen without lr=0.001, whose runs failed; zoo study run --retry trains them." in found["notes"]


def test_an_architecture_that_always_diverges_has_no_result(make_runner):
    options = {"grid": {"train.optimizer.lr": LRS}}
    finish_study(make_runner(**options), lambda run: None if run.architecture == "tiny_window" else 3.0)
    verdict = findings(make_runner(**options))["results"]["verdicts"][1]
    assert verdict["outcome"] == "missing"
    assert verdict["sentence"] == "tiny_window: no result: every point of the grid diverged or failed."


def test_an_unfinished_study_says_so(make_runner):
    results = findings(make_runner(grid={"train.optimizer.lr": LRS}))["results"]
    assert results["verdicts"][0]["sentence"] == (
        "tiny_full: no result: 3 of 3 runs that choose from the grid are still waiting."
    )
    assert "12 of 12 runs are not done; what is said here may change." in results["notes"]


def test_losses_that_choose_are_shown_before_the_choice_is_made(make_runner):
    """And nothing is said of a learning rate that is not chosen."""
    runner = make_runner(grid={"train.optimizer.lr": LRS})
    finish_study(runner, lambda run: 3.0 + run.point.value("train.optimizer.lr"))
    last = next(run for run in runner.all() if run.id == "tiny_window-lr=0.004-seed1")
    runner.folder.folder(last).summary.unlink()
    found = findings(make_runner(grid={"train.optimizer.lr": LRS}))
    full, window = found["results"]["architectures"]
    assert full["chosen"] == "lr=0.001"
    assert (window["chosen"], window["edges"]) == (None, [])
    assert window["losses_of_choice"] == {"lr=0.001": pytest.approx(3.001), "lr=0.002": pytest.approx(3.002)}
    assert "| tiny_window | 3.0010 | 3.0020 | waiting |" in as_markdown(found)
    row = next(row for row in found["results"]["equal"] if row["what"] == "learning rate")
    assert row == {
        "what": "learning rate",
        "values": {"tiny_full": 1e-3, "tiny_window": "not chosen yet"},
        "equal": None,
    }
    assert "| learning rate | open | tiny_full: 0.001; tiny_window: not chosen yet |" in as_markdown(found)


def test_two_seeds_are_said_to_decide_little(make_runner):
    finish_study(
        make_runner(seeds=[1, 2]), lambda run: 3.0 + 0.01 * run.seed + (run.architecture == "tiny_window") * 0.1
    )
    notes = findings(make_runner(seeds=[1, 2]))["results"]["notes"]
    assert any(note.startswith("Fewer than three seeds count") for note in notes)


def test_scores_are_one_family_and_follow_the_better_direction(make_runner):
    options = {"tasks": ["mqar"], "seeds": [1, 2, 3, 4]}

    def scores(run):
        return {"mqar": 0.5 + 0.01 * run.seed + (0.2 + 0.001 * run.seed) * (run.architecture == "tiny_window")}

    finish_study(make_runner(**options), lambda run: 3.0 + 0.01 * run.seed, scores)
    found = findings(make_runner(**options))
    score = found["results"]["architectures"][1]["scores"]["mqar"]["accuracy"]
    assert score["difference"]["decided"]
    assert score["difference"]["value"] == pytest.approx(0.2025)
    table = as_markdown(found).split("| mqar: accuracy, chance 50% |")[1]
    assert table.splitlines()[2].endswith(", better |")


def test_tasks_do_not_weaken_the_verdicts(toy):
    """The loss is a family by itself."""
    alone, with_tasks = toy(7)["results"], toy(7, TASKS)["results"]
    assert alone["verdicts"] == with_tasks["verdicts"]
    assert alone["families"] == {"loss": {"comparisons": 2}, "scores": {"comparisons": 0, "primary": {}}}
    assert with_tasks["families"]["scores"] == {"comparisons": 8, "primary": dict.fromkeys(TASKS, "accuracy")}
    assert "as two families: 2 of the loss and 8 of the primary metrics of the tasks." in with_tasks["about"]
    assert "as one family: 2 of the loss." in alone["about"]
    assert "tasks" not in alone["about"]


def test_further_metrics_take_no_part_in_the_correction_and_are_not_decided(make_runner):
    """nats differ by far and are not decided; of accuracy the corrected p is that of two comparisons, not of six."""
    options = {"tasks": ["mqar", "copy"], "seeds": [1, 2, 3, 4]}

    def scores(run):
        other = run.architecture == "tiny_window"
        noise = 0.001 * (run.seed * 7 % 5)
        return {
            "mqar": {"nats": 2.0 - other + noise * other, "accuracy": 0.5 + other * (0.02 + noise), "rows_right": 0.1},
            "copy": {"accuracy": 0.5 + noise * other},
        }

    finish_study(make_runner(**options), lambda run: 3.0 + 0.01 * run.seed, scores)
    found = findings(make_runner(**options))
    first, window = (each["scores"]["mqar"] for each in found["results"]["architectures"])
    assert {name: numbers["primary"] for name, numbers in window.items()} == {
        "nats": False, "accuracy": True, "rows_right": False}  # fmt: skip
    judged, further = window["accuracy"]["difference"], window["nats"]["difference"]
    assert judged["p_holm"] == pytest.approx(2 * judged["p"])
    assert judged["decided"]
    assert further["high"] < 0
    assert (further["holm_low"], further["p_holm"], further["decided"]) == (None, None, False)
    assert first["nats"]["difference"] is None
    for text in (as_text(found), as_markdown(found)):
        assert text.index("95% together") < text.index("mqar: accuracy") < text.index("further scores, not decided")
        assert text.index("95%, not corrected") < text.index("mqar: nats")
        assert "nothing is decided" in " ".join(text.split())
    table = as_markdown(found).split("| further scores, not decided |")[1].split("\n\n")[0]
    assert "| mqar: nats |  |  |  |\n|   tiny_full | 2.000 (2.000 to 2.000) | – | – |" in table
    assert "|   tiny_window | 1.002 (" in table
    assert not re.search("better|worse|contains 0", table)


def test_a_loss_per_token_is_not_compared_between_tokenizers(make_runner):
    from tests.zoo.study.conftest import TINY

    other = {"recipe": str(TINY / "window.yaml"), "set": {"data.tokenizer": {"kind": "bpe", "vocab_size": 512},
                                                          "model.vocab_size": 512}}  # fmt: skip
    options = {"recipes": ["full", other], "seeds": [1, 2, 3], "tasks": ["loss_by_position"]}
    noise = {1: 0.0, 2: 0.001, 3: -0.001}

    def scores(run):
        at = noise[run.seed] + (run.architecture == "tiny_window")
        return {"loss_by_position": {"nats": 3 - at, "bits_per_byte": 1 + at}}

    finish_study(make_runner(**options), lambda run: 3.0, scores)
    results = findings(make_runner(**options))["results"]
    found = results["architectures"][1]["scores"]["loss_by_position"]
    assert results["families"]["scores"]["primary"] == {"loss_by_position": "bits_per_byte"}
    assert found["bits_per_byte"]["difference"]["value"] == pytest.approx(1.0)
    assert found["nats"]["difference"] is None
    assert not found["nats"]["primary"]


def test_a_report_shows_losses_of_runs_that_lack_scores_and_says_so(make_runner):
    """A task was added, or its version raised, and the runs have not been scored again yet."""
    finish_study(
        make_runner(seeds=[1, 2, 3]), lambda run: 3.0 + 0.01 * run.seed, lambda run: {"mqar": 0.5, "copy": 0.5}
    )
    runner = make_runner(seeds=[1, 2, 3], tasks=["mqar", "induction"])
    found = write_report(runner.runs, runner.folder)["results"]
    assert [each["mean_loss"]["n"] for each in found["architectures"]] == [3, 3]
    assert "6 of 6 runs lack the scores of induction; zoo study run scores them." in found["notes"]
    assert not any("mqar" in note for note in found["notes"])
    assert found["architectures"][0]["scores"].keys() == {"mqar"}  # copy is no task of the study


def test_scores_of_an_older_version_of_a_task_are_not_reported(make_runner, monkeypatch):
    finish_study(make_runner(seeds=[1, 2, 3]), lambda run: 3.0, lambda run: {"mqar": 0.5})
    monkeypatch.setattr(task_class("mqar"), "version", 2)
    found = write_report((runner := make_runner(seeds=[1, 2, 3], tasks=["mqar"])).runs, runner.folder)["results"]
    assert found["architectures"][0]["scores"] == {}
    assert "6 of 6 runs lack the scores of mqar; zoo study run scores them." in found["notes"]


def test_what_is_not_equal_is_said(make_runner):
    from tests.zoo.study.conftest import TINY

    other = {"recipe": str(TINY / "window.yaml"), "set": {"train.duration": "300ba", "train.schedule.warmup": "7ba"}}
    results = findings(make_runner(recipes=["full", other]))["results"]
    rows = {row["what"]: row["equal"] for row in results["equal"]}
    assert not rows["duration"]
    assert not rows["schedule"]
    assert rows["tokens a batch"]
    assert any(note.startswith("Not equal: train.schedule.warmup is ") for note in results["notes"])


def test_the_speed_up_is_one_for_the_first_and_more_for_a_better_one(toy):
    each = {a["name"]: a for a in toy(5)["results"]["architectures"]}
    assert each["tiny_full"]["speedup"]["compute"] == pytest.approx(1, abs=0.1)
    assert not each["tiny_full"]["speedup"]["extrapolated"]
    assert each["better"]["speedup"]["compute"] > 1.2
    assert each["better"]["speedup"]["extrapolated"]


def with_curve(name: str, curve, loss: float | None = None) -> dict:
    """An architecture with one run of 100 FLOPs, whose losses are those of `curve`; loss: its final one."""
    losses = [[tokens, curve(tokens)] for tokens in range(5, 105, 5)]
    final = losses[-1][1] if loss is None else loss
    run = {"state": "done", "tokens": 100, "validation": losses}
    mean = {"value": final, "low": final - 0.01, "high": final + 0.01}
    return {"name": name, "runs": [run], "flops_per_token": 1.0, "mean_loss": mean}


def power_law(tokens: float) -> float:
    return 2 + 4 * tokens**-0.5


def late(tokens: float) -> float:
    """A task that is not learnt until the end."""
    return 8.0 if tokens < 90 else 0.01


def test_no_speed_up_is_stated_where_the_first_does_not_follow_a_power_law():
    found = {each["name"]: each for each in (with_curve("first", late), with_curve("other", late, 0.001))}
    curve, why = _speedups(found, "loss")
    assert curve is None
    assert [each["speedup"] for each in found.values()] == [None, None]
    assert re.fullmatch(
        "No speed-up is stated: the curve fitted to the losses of first .* so it does not describe them.", why
    )


@pytest.mark.parametrize(
    ("loss", "compute", "shown"),
    [
        (power_law(50), 0.5, "0.50x (0.48 to 0.52)"),
        (power_law(400), 4, "4.00x (3.63 to 4.43) (extrapolated)"),
        (power_law(900), 9, "9.00x (at least 7.79) (extrapolated)"),  # the better end of the interval is too far
        (power_law(1100), None, "more than 10x (at least 9.38)"),
        (1.9, None, "more than 10x"),  # below the limit of the curve
    ],
)
def test_a_speed_up_is_extrapolated_to_ten_times_the_compute_at_most(loss, compute, shown):
    found = {each["name"]: each for each in (with_curve("first", power_law), with_curve("other", late, loss))}
    curve, why = _speedups(found, "loss")
    assert curve is not None
    assert why is None
    assert found["first"]["speedup"]["compute"] == pytest.approx(1, abs=0.02)
    if compute is None:
        assert found["other"]["speedup"]["compute"] is None
        assert found["other"]["speedup"]["more_than"] == 10
    else:
        assert found["other"]["speedup"]["compute"] == pytest.approx(compute, rel=0.02)
    assert speedup_cells(found["other"], {"speedup_time": None}, False)[0] == shown


def test_the_least_speed_up_is_not_rounded_up_and_in_time_may_be_not_comparable():
    speedup = {"compute": None, "low": None, "high": None, "more_than": 2.79, "extrapolated": True}
    cells = [speedup_cells({"speedup": speedup}, {"speedup_time": None}, other) for other in (False, True)]
    assert cells == [["more than 2.7x", NO_VALUE], ["more than 2.7x", "not comparable"]]


def test_another_architecture_can_be_the_one_compared_with(make_runner):
    runner = make_runner()
    finish_study(runner, lambda run: 3.0 + 0.01 * run.seed + 0.1 * (run.architecture == "tiny_window"))
    first, other = findings(runner, "tiny_window")["results"]["verdicts"]
    assert first["sentence"].startswith("tiny_window: validation loss")
    assert other["sentence"].startswith("tiny_full: better than tiny_window by 0.1000")
    with pytest.raises(StudyError, match="no architecture 'full' in the study; known: tiny_full, tiny_window"):
        findings(runner, "full")


def test_the_interval_of_a_share_ends_at_none_and_at_all_rows():
    share, other = {"share": True, "rows": 100}, {"share": False, "rows": 100}
    none, few, most = (
        {seed: value for seed, value in enumerate(values)} for values in ([0.0] * 4, [0, 0.05], [1, 0.9])
    )
    assert (_mean(none, share).low, _mean(few, share).low, _mean(most, share).high) == (0.0, 0.0, 1.0)
    assert 0 < _mean(none, share).high < 0.01
    assert _mean(few, other).low < 0
    assert _mean({1: 0.5}, share).low is None
