"""What a study found, as plain data: `findings` gathers the runs and concludes; each conclusion is a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.counting.model_cost import model_cost
from zoo.study.comparing import about, conclude, one_tokenizer
from zoo.study.config import StudyError
from zoo.study.equality import equality
from zoo.study.expand import Run, Runs
from zoo.study.matching import described
from zoo.study.measuring import training_speed
from zoo.study.results import flops_per_token, run_measured, run_results
from zoo.study.runner import Runner
from zoo.study.speeds import notes as speed_notes
from zoo.study.speeds import put_comparisons, range_of_sharing
from zoo.study.state import DONE
from zoo.study.statistics import Curve, fit_curve
from zoo.study.verdicts import notes, verdict

FITS = 1.25  # the curve of the first architecture must give its own compute within this factor
FARTHEST = 10.0  # times the compute of the first architecture: the curve is not believed beyond


def findings(runner: Runner, against: str | None = None) -> dict[str, Any]:
    """{"results": ..., "measured": ...}; results do not depend on clocks or machines.

    against: the architecture that the others are compared with; default: the first.
    Raises StudyError if the study has none of that name.
    """
    runs = runner.runs
    if against is not None and against not in runs.architectures:
        known = ", ".join(runs.architectures)
        raise StudyError(f"--against: no architecture {against!r} in the study; known: {known}")
    order = dict.fromkeys([against or next(iter(runs.architectures)), *runs.architectures])
    found = {name: _architecture(runner, name) for name in order}
    metric = _metric(runs, found)
    families = conclude(found, metric, runner)
    curve, why_none = _speedups(found, metric)
    config = runs.study.config
    results = {
        "study": config.name,
        "summary": config.summary,
        "metric": metric,
        "about": about(families),
        "families": families,
        "seeds": {"choosing": config.choosing, "counting": config.counting},
        "grid": config.grid,
        "tasks": list(runner.tasks),
        "verdicts": [verdict(name, found, metric, len(config.counting)) for name in found],
        "notes": [*notes(runner, found), *runs.notes, *([why_none] if why_none else [])],
        "architectures": list(found.values()),
        "equal": equality(runs, {name: runner.point(name) for name in found}),
        "matched": described(runs.changes),
        "curve": curve.as_dict() if curve else None,
    }
    return {"results": results, "measured": _measured(runner, found)}


def _architecture(runner: Runner, name: str) -> dict[str, Any]:
    """The facts and runs of an architecture, at the point where it is judged."""
    point = runner.point(name)
    so_far = runner.choice_so_far(name) if runner.runs.study.config.choosing else None
    choice = runner.choice(name) if so_far is not None else None
    recipe = runner.runs.recipes[name, (point or runner.runs.points[0]).label]
    counting = list(runner.runs.counting(name, point)) if point is not None else []
    choosing = [run for run in runner.runs.choosing() if run.architecture == name]
    cost = model_cost(recipe.model, recipe.model.max_seq_len)
    return {
        "name": name,
        "recipe": str(runner.runs.architectures[name]),
        "summary": recipe.summary,
        "parameters": cost.parameters["total"],
        "parameters_without_embedding": cost.parameters["total"]
        - cost.parameters["embedding"]
        - cost.parameters["head"],
        "d_ff": getattr(recipe.model.ffn, "d_ff", None),
        "flops_per_token": flops_per_token(recipe),
        "cache_length": recipe.model.max_seq_len,
        "cache_nominal_bytes": cost.cache_nominal_bytes,
        "cache_held_bytes": cost.cache_held_bytes,
        "chosen": point.label if point is not None else None,
        "chosen_values": dict(point.values) if point is not None else {},
        "points": {point.label: dict(point.values) for point in runner.runs.points},
        "losses_of_choice": so_far.losses if so_far is not None else {},  # without points whose runs still wait
        "edges": choice.edges if choice is not None else [],
        "runs": _results(runner, counting),
        "choosing_runs": _results(runner, choosing),
    }


def _results(runner: Runner, runs: Sequence[Run]) -> list[dict[str, Any]]:
    states = [runner.state(run) for run in runs]
    return [run_results(runner.folder, run, s.name, s.why) for run, s in zip(runs, states, strict=True)]


def _metric(runs: Runs, found: Mapping[str, dict]) -> str:
    """`loss`; bits per byte where the architectures have different tokenizers and all runs know the bytes."""
    done = [run for each in found.values() for run in each["runs"] if run["state"] == DONE]
    other = not one_tokenizer(runs)
    return "bits_per_byte" if other and all(run["bits_per_byte"] is not None for run in done) else "loss"


def _speedups(found: dict[str, dict], metric: str) -> tuple[Curve | None, str | None]:
    """Put the effective speed-up at equal loss into each architecture.

    Returns the fitted curve of the first and None, or None and why the curve is not used, if one was fitted.
    """
    first, curve, why = next(iter(found.values())), None, None
    points = mean_curve(first["runs"], "validation") if metric == "loss" else []
    if points:
        curve = fit_curve([p[0] * first["flops_per_token"] for p in points], [p[1] for p in points])
    own = _speedup(first, first, curve) if curve else None
    if own and not (own["compute"] and 1 / FITS <= own["compute"] <= FITS):
        name = first["name"]
        but = f"does not reach its own loss within {FARTHEST:.0f} times its compute"
        if own["compute"] is not None:
            but = f"reaches its own loss at {own['compute']:.2g} times its compute"
        why = f"No speed-up is stated: the curve fitted to the losses of {name} {but}, so it does not describe them."
        curve = None
    for each in found.values():
        each["speedup"] = _speedup(each, first, curve) if curve else None
    return curve, why


def _speedup(each: dict, first: dict, curve: Curve) -> dict[str, Any] | None:
    """compute: FLOPs that the curve needs for the architecture's mean loss, over the FLOPs that it took; low and high
    from the interval of that loss; each None if it would be beyond FARTHEST.  more_than: the speed-up at FARTHEST, if
    `compute` is beyond.  extrapolated: the loss is below the first architecture's own.
    """
    took, own = _flops(each), _flops(first)
    if took is None or own is None or each["mean_loss"] is None:
        return None

    def times(loss: float | None) -> float | None:
        needed = curve.flops_for(loss) if loss is not None else None
        return needed / took if needed is not None and needed <= FARTHEST * own else None

    mean = each["mean_loss"]
    compute, low, high = (times(mean[key]) for key in ("value", "high", "low"))
    return {
        "compute": compute,
        "low": low,
        "high": high,
        "more_than": FARTHEST * own / took if compute is None else None,
        "flops": took,
        "extrapolated": mean["value"] < first["mean_loss"]["value"],
    }


def _flops(each: dict) -> float | None:
    """Mean training FLOPs of the runs that are done."""
    tokens = [run["tokens"] for run in each["runs"] if run["state"] == DONE]
    return sum(tokens) / len(tokens) * each["flops_per_token"] if tokens else None


def mean_curve(runs: Sequence[dict], key: str) -> list[list[float]]:
    """[tokens, mean, lowest, highest] of the losses of the runs that are done, where all of them have one."""
    done = [run[key] for run in runs if run["state"] == DONE]
    if not done:
        return []
    by_tokens = [dict(map(tuple, curve)) for curve in done]
    common = [tokens for tokens in by_tokens[0] if all(tokens in each for each in by_tokens)]
    values = [(tokens, [each[tokens] for each in by_tokens]) for tokens in common]
    return [[tokens, sum(v) / len(v), min(v), max(v)] for tokens, v in values]


def _measured(runner: Runner, found: Mapping[str, dict]) -> dict[str, Any]:
    """Times, speeds and machines."""
    from zoo.files import present
    from zoo.study.kept import read_speeds

    architectures: dict[str, dict[str, Any]] = {}
    for name in found:
        point = runner.point(name)
        counting = list(runner.runs.counting(name, point)) if point else []
        runs = [run_measured(runner.folder, run) for run in counting if runner.state(run).name == DONE]
        speeds = [run["tokens_per_s"] for run in runs if run["tokens_per_s"]]
        times = [run["time_s"] for run in runs]
        file = runner.folder.speed / f"{name}.json"
        architectures[name] = {
            "tokens_per_s": sum(speeds) / len(speeds) if speeds else None,
            "runs_on_device": range_of_sharing(runs),
            "time_s": sum(times) / len(times) if times else None,
            "alone": training_speed(runner.folder, counting[0]) if counting else None,
            "decoding": read_speeds(file) if present(file) else [],
            "runs": runs,
        }
    curves = {name: mean_curve(each["runs"], "validation") for name, each in found.items()}
    comparison = put_comparisons(found, architectures, curves)
    each_run = {
        name: [{key: v for key, v in run.items() if key != "validation_time"} for run in each.pop("runs")]
        for name, each in architectures.items()
    }
    wanted, (first, *others) = runner.runs.study.config.measure, found
    machines = [run["environment"] for runs in each_run.values() for run in runs]
    return {
        "architectures": architectures,
        "comparison": comparison,
        "notes": [*speed_notes(comparison, first, len(others), bool(wanted and wanted.training))],
        "runs": each_run,
        "machines": [m for i, m in enumerate(machines) if m not in machines[:i]],
    }
