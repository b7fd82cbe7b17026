"""The live table of a study on a terminal, and its lines elsewhere."""

import io
import json

from rich.console import Console

from tests.zoo.study.synthetic import finish_study, write_run
from zoo.study.screen import Progress, Screen

GRID = {"train.optimizer.lr": [1e-3, 2e-3]}


def test_the_table_says_what_is_done_running_and_failed_with_losses_and_time_left(make_runner):
    options = {"seeds": [1, 2, 3], "grid": GRID, "set": {"train.duration": "10ba"}}
    finish_study(make_runner(**options), lambda run: 3.0 if run.architecture == "tiny_full" else None)
    runner = make_runner(**options)
    running = next(run for run in runner.all() if run.seed == 2)
    folder = runner.folder.folder(running).path
    write_run(folder, running.recipe.dump(), [4.0, 3.5])
    (folder / "summary.json").unlink()
    runner.states.clear()
    progress = Progress(runner, [running.id])
    assert progress.counts() == {"done": 3, "running": 1, "waiting": 2, "failed": 0, "diverged": 2}
    assert "of 8 runs; about " in progress.headline()
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    with Screen(console) as screen:
        runner.slots.running = lambda: [running.id]
        screen.follow(runner)
    said = console.file.getvalue()
    for text in ("tiny_full", "lr=0.001", "2 of 10", "3.5000", "loss is nan", "2 diverged"):
        assert text in said


def test_the_time_left_is_that_of_the_device_on_which_runs_now(make_runner):
    """Runs that were done on a GPU, say, do not tell how long the rest takes on a CPU."""
    options = {"seeds": [1, 2, 3], "set": {"train.duration": "10ba"}, "recipes": ["full"]}
    finish_study(make_runner(**options), lambda run: 3.0)
    runner = make_runner(**options)
    *done, running = runner.all()
    for each in done:
        summary = runner.folder.folder(each).summary
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"time_s": 5e6}))
        runner.folder.folder(each).environment.write_text('{"device": "slow"}')
    kept = runner.folder.folder(running)
    kept.summary.unlink()
    kept.metrics.write_text("".join(kept.metrics.read_text().splitlines(True)[:10]))
    slow = Progress(runner, [running.id]).time_left_s()
    kept.environment.write_text('{"device": "fast"}')
    fast = Progress(runner, [running.id]).time_left_s()
    assert slow > 1000 * fast > 0
    assert Progress(runner, []).time_left_s() is None, "nothing is at work"


def test_where_there_is_no_terminal_events_are_lines(make_runner):
    console = Console(file=io.StringIO(), width=100)
    with Screen(console) as screen:
        screen.say("a\x1b[31m: done")
        screen.follow(make_runner())
    assert console.file.getvalue() == "a\\x1b[31m: done\n"
