"""How many runs were on the device of a run while it ran, also over stops, kills and other versions."""

import pytest

from tests.zoo.study.synthetic import finish_study, write_device
from zoo.study import sharing
from zoo.study.results import keep, run_measured
from zoo.study.slots import Ended


@pytest.fixture
def done(make_runner):
    """The runner of a study that is done, with 4 runs on the device of each run."""
    runner = make_runner()
    finish_study(runner, lambda run: 3.0)
    for run in runner.all():
        write_device(runner, run, 4.0)
    return runner


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study_records_how_many_runs_were_on_the_device(make_runner, jobs):
    runner = make_runner(jobs, batch_s=0.05)
    runner.run()
    kept = [runner.folder.kept(run)["measured"]["runs_on_device"] for run in runner.all()]
    assert len(kept) == 8
    if jobs == 1:
        assert kept == [1.0] * 8
    else:
        assert all(1.0 <= each <= 2.0 for each in kept)
        assert sum(kept) > 8 * 1.2


def test_the_pieces_of_a_run_are_added(make_runner):
    runner = make_runner()
    runner.folder.make()
    folder, run = runner.folder, runner.all()[0]
    assert sharing.runs_on_device(folder, run) is None
    sharing.begin(folder, run)
    assert sharing.runs_on_device(folder, run) is None, "it still runs"
    sharing.end(folder, run, Ended(run.id, 130, seconds=10.0, runs_on_device=1.0))
    folder.folder(run).path.mkdir(parents=True)
    folder.folder(run).metrics.write_text("")
    sharing.begin(folder, run)
    sharing.end(folder, run, Ended(run.id, 0, seconds=30.0, runs_on_device=3.0))
    assert sharing.runs_on_device(folder, run) == 2.5


def test_a_run_that_is_only_scored_changes_nothing(done):
    runner, run = done, done.all()[0]
    sharing.begin(runner.folder, run)
    sharing.end(runner.folder, run, Ended(run.id, 0, seconds=1000.0, runs_on_device=1.0))
    assert sharing.runs_on_device(runner.folder, run) == 4.0
    keep(runner.folder, run, {})
    assert run_measured(runner.folder, run)["runs_on_device"] == 4.0


def test_the_scoring_of_a_run_whose_study_was_killed_is_not_taken_for_its_training(done):
    """The run itself went on to its end, which nobody counted."""
    folder, run = done.folder, done.all()[0]
    summary = folder.folder(run).summary.read_text()
    folder.folder(run).summary.unlink()
    sharing.begin(folder, run)
    folder.folder(run).summary.write_text(summary)
    sharing.begin(folder, run)
    sharing.end(folder, run, Ended(run.id, 0, seconds=1000.0, runs_on_device=1.0))
    assert sharing.runs_on_device(folder, run) is None


def begun_by_an_earlier_version(folder, run):
    (folder.logs / f"device-{run.id}.json").unlink()


def killed_with_the_study(folder, run):
    sharing.begin(folder, run)


def on_a_cluster_that_does_not_know(folder, run):
    sharing.begin(folder, run)
    sharing.end(folder, run, Ended(run.id, -9, seconds=5.0))


@pytest.mark.parametrize("piece", [begun_by_an_earlier_version, killed_with_the_study, on_a_cluster_that_does_not_know])
def test_a_run_with_a_piece_that_was_not_counted_is_not_known(done, piece):
    folder, run = done.folder, done.all()[0]
    folder.folder(run).summary.unlink()
    piece(folder, run)
    sharing.begin(folder, run)
    sharing.end(folder, run, Ended(run.id, 0, seconds=5.0, runs_on_device=4.0))
    assert sharing.runs_on_device(folder, run) is None
    for trace in folder.folder(run).traces():
        trace.unlink()
    sharing.begin(folder, run)
    sharing.end(folder, run, Ended(run.id, 0, seconds=5.0, runs_on_device=2.0))
    assert sharing.runs_on_device(folder, run) == 2.0, "a run that is trained anew"
