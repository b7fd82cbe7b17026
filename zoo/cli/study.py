"""`zoo study ...` on the command line: parses, calls the room, prints. Imports nothing heavy before a command runs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.app import App
from zoo.cli.options import AsJson, Plugins
from zoo.errors import Problem, RecipeError
from zoo.terminal import err, out, out_styled

app = App(
    help="Train architectures over seeds and settings, and report which differences are more than chance.",
    no_args_is_help=True,
)
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="A study (YAML file).", show_default=False)]
Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the study, e.g. --set jobs=2. Repeatable."),
]


@app.callback()
def _group() -> None:
    pass


def _load(study: Path, overrides: list[str] | None):
    from zoo.study.config import load_study
    from zoo.study.expand import expand
    from zoo.study.state import StudyFolder

    runs = expand(load_study(study, overrides or []))
    return runs, StudyFolder(runs.study.folder)


def _jobs(runs) -> int | None:
    return None if runs.study.config.jobs == "auto" else int(runs.study.config.jobs)


@app.command()
def run(
    study: StudyFile,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs and an estimate of their time, and train nothing.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Train failed runs once more.")] = False,
    on: Annotated[str, typer.Option(metavar="local|ray", help="This machine, or a Ray cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="With --on ray: the cluster. Default: RAY_ADDRESS, else one on this machine.")
    ] = None,
    mps: Annotated[
        bool, typer.Option(help="On GPUs: use NVIDIA's multi-process service where it is available.")
    ] = True,
    overrides: Override = None,
    plugins: Plugins = None,
) -> None:
    """Train every run of a study that is not done, then report; the same command resumes after any stop."""
    if on not in ("local", "ray"):
        raise typer.BadParameter(f"must be local or ray; found {on!r}.", param_hint="--on")
    if address is not None and on != "ray":
        raise typer.BadParameter("is for --on ray.", param_hint="--address")
    runs, folder = _load(study, overrides)
    if dry_run:
        from zoo.study.dry_run import as_text

        out_styled(as_text(runs, folder, _jobs(runs), on), end="")
        return
    from zoo.study.runner import Runner
    from zoo.study.screen import Screen

    for note in runs.notes:
        err(f"note: {note}")
    slots = _ray_slots(runs, address) if on == "ray" else _local_slots(runs, mps)
    with Screen() as screen:
        runner = Runner(runs, folder, slots, follow=screen.follow, say=screen.say)
        runner.run(retry=retry)
    _report(runs, folder)
    failed = [run for run in runner.all() if runner.state(run).name == "failed"]
    if failed:
        many = f"{len(failed)} run{'s' * (len(failed) > 1)}"
        err(f"{many} failed: {', '.join(run.id for run in failed)}; logs: {folder.logs}; again: --retry")
        raise typer.Exit(1)


def _local_slots(runs, with_mps: bool):
    from zoo.study.gpus import Mps, visible_gpus
    from zoo.study.slots import Slots

    gpus = visible_gpus()
    at_once = _jobs(runs)
    mps = Mps() if gpus and at_once != 1 and with_mps else None
    return Slots(at_once, gpus, mps=mps)


def _ray_slots(runs, address: str | None):
    from zoo.study.ray_slots import RaySlots

    return RaySlots(_jobs(runs), address or os.environ.get("RAY_ADDRESS"))


def _report(runs, folder) -> None:
    from zoo.study.report import as_text, write_report

    found = write_report(runs, folder)
    out_styled(as_text(found), end="")
    out(f"page: {folder.path / 'report.html'}; also report.md, results.json and measured.json there")


@app.command()
def status(study: StudyFile, overrides: Override = None, json: AsJson = False, plugins: Plugins = None) -> None:
    """List which runs of a study are done, running, waiting or failed; changes nothing."""
    from zoo.json_text import json_text
    from zoo.study.runner import Runner
    from zoo.study.screen import Progress
    from zoo.study.slots import Slots
    from zoo.study.state import refuse_other_settings
    from zoo.tables import Text, rendered

    runs, folder = _load(study, overrides)
    runner = Runner(runs, folder, Slots(_jobs(runs)))
    refuse_other_settings(folder, runner.all())
    progress = Progress(runner, folder.now_running())
    if json:
        out(json_text(progress.as_dict()), end="")
        return
    working = "a zoo study run is at work" if folder.is_running() else "no zoo study run is at work"
    reasons = [Text(reason, style="red") for reason in progress.reasons()]
    out_styled(
        rendered([Text(progress.headline()), progress.table(), *reasons, Text(working, style="dim")], None), end=""
    )


@app.command()
def report(
    study: StudyFile,
    overrides: Override = None,
    json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown, for a paper.")] = False,
    against: Annotated[
        str | None, typer.Option(metavar="NAME", help="Compare with this architecture. Default: the first.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page there instead of report.html in the folder.")
    ] = None,
    plugins: Plugins = None,
) -> None:
    """Report the results of the runs that are done; works while others still run."""
    from zoo.json_text import json_text
    from zoo.report.compare import check_folder
    from zoo.study.report import as_markdown, as_text, write_report

    check_folder(html, "--html")
    runs, folder = _load(study, overrides)
    if not folder.path.is_dir():
        problem = f"no runs in {folder.path}; first: zoo study run {study}"
        raise RecipeError([Problem(problem, file=str(study))])
    found = write_report(runs, folder, html, against)
    if json:
        out(json_text(found), end="")
    elif markdown:
        out(as_markdown(found), end="")
    else:
        out_styled(as_text(found), end="")
        out(f"page: {html or folder.path / 'report.html'}")
