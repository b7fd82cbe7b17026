"""`zoo study run --dry-run`: the runs, what matching changed, tokens, FLOPs, and the time they may take. No torch."""

from zoo.counting.run_cost import GPUS
from zoo.processes import processor
from zoo.report.rows import decimal
from zoo.study.equality import unequal
from zoo.study.estimate import all_runs, estimate, flops_per_token, length
from zoo.study.expand import Runs
from zoo.study.gpus import visible_gpus
from zoo.study.matching import described, parameters_of
from zoo.study.runner import Runner
from zoo.study.slots import Slots
from zoo.study.state import StudyFolder, refuse_other_settings
from zoo.tables import Table, Text, rendered
from zoo.training.summary import as_time

MOST_ROWS = 200


def as_text(runs: Runs, folder: StudyFolder, jobs: int | None, on: str, width: int | None = None) -> str:
    """What `zoo study run` would do.  Raises OtherSettings where it would."""
    gpus = visible_gpus() if on == "local" else []
    slots = Slots(jobs, gpus)
    known = next((gpu for key, gpu in GPUS.items() if gpus and key in gpus[0].name.casefold()), None)
    gpu = (known or GPUS["h200"]) if gpus else None
    runner = Runner(runs, folder, slots)
    refuse_other_settings(folder, runner.all())
    found = estimate(runner, slots.limit(), gpu, slots.cores, gpus[0].name if gpus else processor())
    where = slots.about() if on == "local" else f"on this machine alone, the cluster was not asked: {slots.about()}"
    parts = [_runs_table(runner), Text(), *map(Text, _facts(runner, found, where))]
    return rendered(parts, width)


def _runs_table(runner: Runner):
    table = Table("run", "for", "parameters", "tokens", "training FLOPs", "state")
    for column in table.columns[2:5]:
        column.justify = "right"
    runs = runner.runs
    made = list(all_runs(runs, {name: runner.point(name) for name in runs.architectures}))
    for run, stands_in in made[:MOST_ROWS]:
        tokens = length(run.recipe).tokens
        flops = "" if tokens is None else decimal(tokens * flops_per_token(run.recipe))
        purpose = "the mean" if run.seed in runs.study.config.counting else "the choice"
        name = f"{run.architecture}-...-seed{run.seed}" if stands_in else run.id
        parameters = f"{parameters_of(run.recipe):,}"
        shown = "epochs" if tokens is None else decimal(tokens)
        state = "chosen by then" if stands_in else runner.state(run).name
        table.add_row(name, purpose, parameters, shown, flops, state)
    if len(made) > MOST_ROWS:
        table.add_row(f"and {len(made) - MOST_ROWS} more")
    return table


def _facts(runner: Runner, found: dict, where: str):
    runs = runner.runs
    config = runs.study.config
    choosing = found["choosing"]
    yield (
        f"{found['runs']} runs: {choosing} choose from {len(runs.points)} points of the grid (seed "
        f"{', '.join(map(str, config.choosing))}), {found['runs'] - choosing} count (seeds "
        f"{', '.join(map(str, config.counting))})"
        if choosing
        else f"{found['runs']} runs with seeds {', '.join(map(str, config.counting))}"
    )
    if len(config.counting) < 3:
        yield f"note: intervals over {len(config.counting)} seeds are wide; {_remedy(config)}"
    if found["unknown"]:
        yield f"{found['unknown']} runs have a length in epochs, which is known when the data are prepared"
    yield f"{decimal(found['tokens'])} tokens, {decimal(found['flops'])} training FLOPs"
    time = f"about {_roughly(found['time_s'])}" if found["time_s"] is not None else "not known"
    if found["done"]:
        yield f"{found['done']} runs are done; the time is that of the other {found['runs'] - found['done']}"
    yield f"time: {time}{' without the tasks' if config.tasks else ''} ({found['basis']}); {where}"
    if config.measure:
        speeds = "decoding and training speed" if config.measure.training else "decoding speed"
        yield f"at the end, what is missing of each architecture's {speeds} is measured alone; the time is without that"
    if config.match:
        yield f"parameters matched within {config.match.parameters:.2%}:"
        yield from (f"  {change}" for change in described(runs.changes))
    lacking = [f"task {name}: {why}" for name, why in runner.missing_data().items()]
    yield from (f"note: {note}" for note in (*lacking, *runs.notes, *unequal(runs)))


def _roughly(seconds: float) -> str:
    """A time with two digits: the estimate knows no more."""
    hours = seconds / 3600
    if hours < 10:
        return as_time(_two_digits(seconds))
    return f"{_two_digits(hours):,.0f} h"


def _two_digits(value: float) -> float:
    return round(value, 2 - len(str(int(value))))


def _remedy(config) -> str:
    return (
        "three or more seeds apart from those that choose make them narrower"
        if config.choosing
        else "use three or more"
    )
