"""What a study will take, before it is started: tokens, FLOPs, time, and what each number rests on. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.data.config import Synthetic
from zoo.recipe import Recipe
from zoo.study.expand import Point, Run, Runs
from zoo.study.results import device_of, flops_per_token
from zoo.study.state import DONE
from zoo.training.duration import Span

if TYPE_CHECKING:
    from zoo.study.runner import Runner  # imports numpy

CPU_FLOPS_PER_CORE = 15e9  # float32, small models, measured with recipes/quickstart.yaml on two cores
GPU_SHARE_OF_PEAK = 0.25  # of what small models reach
START_S = {"cpu": 15.0, "gpu": 45.0}  # imports, data, weights, checkpoints; on a GPU also kernels and graphs


@dataclass(frozen=True)
class Length:
    """The length of a training; None where it is in epochs of data that are not prepared."""

    batches: int | None
    tokens: int | None


def length(recipe: Recipe) -> Length:
    """Batches and tokens of a training, as far as the recipe says."""
    seq_len = recipe.seq_len
    per_batch = recipe.train.rows(seq_len) * seq_len
    span, epoch = Span.parse(recipe.train.duration), _rows_of_epoch(recipe)
    if span.unit == "ep" and epoch is None:
        return Length(None, None)
    batches = span.batches(per_batch, (epoch or 0) // recipe.train.rows(seq_len))
    return Length(batches, batches * per_batch)


def _rows_of_epoch(recipe: Recipe) -> int | None:
    streams = recipe.data.streams()
    made = [stream.rows for stream in streams if isinstance(stream, Synthetic)]
    return sum(made) if len(made) == len(streams) else None


def all_runs(runs: Runs, points: Mapping[str, Point | None]) -> Iterator[tuple[Run, bool]]:
    """(run, whether its point is a stand-in) of every run that the study will train.

    points: architecture -> the point that was chosen for it. Where it is None, the first point stands for the one at
    which the runs that count will be trained.
    """
    yield from ((run, False) for run in runs.choosing())
    for name in runs.architectures:
        point = points.get(name)
        yield from ((run, point is None) for run in runs.counting(name, point or runs.points[0]))


def estimate(runner: "Runner", at_once: int, gpu: Any | None, cores: int, device: str) -> dict[str, Any]:
    """Runs, tokens and FLOPs in all, and the hours of the runs that are not done.

    at_once: runs at a time.  gpu: a `sizing.Gpu`, None on a CPU.  device: the name of the GPU or of the processor, as
    runs record it; the speeds of runs on other devices are not used.
    `time_s` is None where a length is not known; `basis` says what it rests on.
    """
    runs = runner.runs
    every = list(all_runs(runs, {name: runner.point(name) for name in runs.architectures}))
    done = {run.id for run, stands_in in every if not stands_in and runner.state(run).name == DONE}
    measured, elsewhere = _measured_s_per_flop(runner, [run for run, _ in every if run.id in done], device)
    choosing = sum(1 for _ in runs.choosing())
    total = {"runs": 0, "done": len(done), "choosing": choosing, "tokens": 0, "flops": 0.0, "unknown": 0}
    seconds = 0.0
    speeds: dict[str, float] = {}
    for run, _ in every:
        total["runs"] += 1
        tokens = length(run.recipe).tokens
        if tokens is None:
            total["unknown"] += 1
            continue
        flops = tokens * flops_per_token(run.recipe)
        total["tokens"] += tokens
        total["flops"] += flops
        if run.architecture not in speeds:
            speeds[run.architecture] = _s_per_flop(run, measured, gpu, cores, at_once)
        if run.id not in done:
            seconds += START_S["gpu" if gpu else "cpu"] + flops * speeds[run.architecture]
    known = not total["unknown"]
    return total | {
        "time_s": seconds / max(1, at_once) if known else None,
        "basis": _basis(measured, elsewhere, runs, gpu),
    }


def _measured_s_per_flop(runner: "Runner", done: Sequence[Run], device: str) -> tuple[dict[str, float], list[str]]:
    """Architecture -> seconds of a FLOP in its runs that are done on such a device; the names of other devices."""
    found: dict[str, list[float]] = {}
    elsewhere: list[str] = []
    for run in done:
        where = device_of(runner.folder, run)
        if where not in (device, None):
            elsewhere.append(where)
            continue
        numbers = runner.numbers(run)
        if numbers.get("tokens"):
            flops = numbers["tokens"] * flops_per_token(run.recipe)
            found.setdefault(run.architecture, []).append(numbers["time_s"] / flops)
    return {name: sum(values) / len(values) for name, values in found.items()}, list(dict.fromkeys(elsewhere))


def _s_per_flop(run: Run, measured: dict[str, float], gpu: Any | None, cores: int, at_once: int) -> float:
    if run.architecture in measured:
        return measured[run.architecture]
    if measured:
        return sum(measured.values()) / len(measured)
    if gpu is None:
        return 1 / (CPU_FLOPS_PER_CORE * max(1, cores // max(1, at_once)))
    from zoo.counting.run_cost import step_size

    seq_len = run.recipe.seq_len
    rows = run.recipe.train.rows(seq_len)
    size = step_size(run.recipe, seq_len, rows, gpu)
    least = size.least_s / (rows * seq_len * flops_per_token(run.recipe))
    return max(least, 1 / (GPU_SHARE_OF_PEAK * gpu.peak_flops))


def _basis(measured: dict[str, float], elsewhere: list[str], runs: Runs, gpu: Any | None) -> str:
    if measured:
        lacking = [name for name in runs.architectures if name not in measured]
        others = f"; {', '.join(lacking)}: the same FLOPs a second as those" if lacking else ""
        return f"measured: runs of {', '.join(measured)} that are done{others}"
    if gpu is not None:
        return f"the cost model: {GPU_SHARE_OF_PEAK:.0%} of the peak of one {gpu.name}, or what its memory allows"
    known = f"what is done was measured on {', '.join(elsewhere)}" if elsewhere else "nothing has been measured yet"
    return f"the cost model: {CPU_FLOPS_PER_CORE / 1e9:.0f} GFLOP/s a core; {known}"
