"""What a study found, as plain data: `findings` gathers the runs and concludes; each conclusion is a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.cost import model_cost
from zoo.recipe import Recipe
from zoo.report.columns import data_read
from zoo.study.config import StudyError
from zoo.study.expand import Point, Run, Runs, described
from zoo.study.results import flops_per_token, run_measured, run_results, seq_len_of
from zoo.study.runner import Runner
from zoo.study.state import DIVERGED, DONE, FAILED, WAITING
from zoo.study.statistics import Curve, Difference, Mean, differences, fit_curve

PARAMETERS_APART = 0.03
ABOUT = (
    "Means and 95% intervals are Student's t over the seeds that count; seeds that chose from the grid are not among "
    "them. Differences are paired by seed and corrected for the number of comparisons by Holm's method: together the "
    "corrected intervals are right with 95%."
)


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
    _conclude(found, metric)
    curve = _speedups(found, metric)
    config = runs.study.config
    results = {
        "study": config.name,
        "summary": config.summary,
        "metric": metric,
        "about": ABOUT,
        "seeds": {"choosing": config.choosing, "counting": config.counting},
        "grid": config.grid,
        "tasks": runner.tasks,
        "verdicts": [_verdict(name, found, metric, len(config.counting)) for name in found],
        "notes": [*_notes(runner, found), *runs.notes],
        "architectures": list(found.values()),
        "equal": equality(runs, {name: runner.point(name) or runs.points[0] for name in found}),
        "matched": described(runs.changes),
        "curve": curve.as_dict() if curve else None,
    }
    return {"results": results, "measured": _measured(runner, found)}


def _architecture(runner: Runner, name: str) -> dict[str, Any]:
    """The facts and runs of an architecture, at the point where it is judged."""
    point = runner.point(name)
    choice = runner.choice(name) if runner.runs.study.config.choosing else None
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
        "losses_of_choice": choice.losses if choice is not None else {},
        "edges": choice.edges if choice is not None else [],
        "runs": _results(runner, counting),
        "choosing_runs": _results(runner, choosing),
    }


def _results(runner: Runner, runs: Sequence[Run]) -> list[dict[str, Any]]:
    states = [runner.state(run) for run in runs]
    return [run_results(runner.folder, run, s.name, s.why) for run, s in zip(runs, states, strict=True)]


def _metric(runs: Runs, found: Mapping[str, dict]) -> str:
    """`loss`; bits per byte where the architectures have different tokenizers and all runs know the bytes."""
    recipes = [runs.recipes[name, runs.points[0].label] for name in runs.architectures]
    tokenizers = [(data_read(recipe)["tokenizer"], recipe.model.vocab_size) for recipe in recipes]
    done = [run for each in found.values() for run in each["runs"] if run["state"] == DONE]
    other = any(each != tokenizers[0] for each in tokenizers)
    return "bits_per_byte" if other and all(run["bits_per_byte"] is not None for run in done) else "loss"


def by_seed(architecture: dict, read) -> dict[int, float]:
    """Seed -> a number of the runs that are done and have it."""
    values = {run["seed"]: read(run) for run in architecture["runs"] if run["state"] == DONE}
    return {seed: value for seed, value in values.items() if value is not None}


def _conclude(found: dict[str, dict], metric: str) -> None:
    """Put means and differences into each architecture: of the metric, and of every score."""
    first, *others = found
    losses = {name: by_seed(each, lambda run: run[metric]) for name, each in found.items()}
    compared = differences(losses[first], {name: losses[name] for name in others})
    for name, each in found.items():
        for key in ("loss", "bits_per_byte"):
            mean = Mean.of(list(by_seed(each, lambda run, key=key: run[key]).values()))
            each[f"mean_{key}"] = mean.as_dict() if mean else None
        each["difference"] = compared[name].as_dict() if name in compared else None
        each["scores"] = {}
    _conclude_scores(found, first, others)


def _conclude_scores(found: dict[str, dict], first: str, others: list[str]) -> None:
    """All scores of all architectures are one family for the correction."""
    names: dict[tuple[str, str], dict] = {}
    for each in found.values():
        for run in each["runs"]:
            for task, metrics in run.get("scores", {}).items():
                for metric, numbers in metrics.items():
                    names.setdefault((task, metric), numbers)
    values = {
        (name, *key): by_seed(each, lambda run, key=key: _score(run, *key))
        for name, each in found.items()
        for key in names
    }
    compared: dict[Any, Difference] = {}
    family: dict[Any, dict[int, float]] = {}
    for name in others:
        for key in names:
            ours, theirs = values[(name, *key)], values[(first, *key)]
            # Differences of one key from the first architecture's, as a family of its own: from 0.
            family[(name, *key)] = {seed: ours[seed] - theirs[seed] for seed in theirs if seed in ours}
    seeds = {seed for each in family.values() for seed in each}
    compared = differences(dict.fromkeys(seeds, 0.0), family)
    for name, each in found.items():
        for (task, metric), numbers in names.items():
            mean = Mean.of(list(values[name, task, metric].values()))
            difference = compared.get((name, task, metric))
            each["scores"].setdefault(task, {})[metric] = {
                "mean": mean.as_dict() if mean else None,
                "difference": difference.as_dict() if difference else None,
                **{key: numbers.get(key) for key in ("chance", "better", "share", "rows")},
            }


def _score(run: dict, task: str, metric: str) -> float | None:
    return run["scores"].get(task, {}).get(metric, {}).get("value")


def _verdict(name: str, found: Mapping[str, dict], metric: str, expected: int) -> dict[str, Any]:
    """{"architecture", "outcome", "sentence"}; outcome: first, better, worse, undecided or missing."""
    first, each = next(iter(found)), found[name]
    mean, what = each[f"mean_{metric}"], {"loss": "validation loss", "bits_per_byte": "bits per byte"}[metric]
    at = f" at {each['chosen']}" if each["chosen"] else ""
    if mean is None:
        return _said(name, "missing", f"{name}: no result: {_why_missing(each, expected)}")
    of = f"{mean['n']} of {expected} seeds" if mean["n"] < expected else f"{expected} seed{'s' * (expected != 1)}"
    value = f"{what} {mean['value']:.4f}{interval(mean['low'], mean['high'])}, {of}{at}"
    if name == first:
        others = "; the others are compared with it" if len(found) > 1 else ""
        return _said(name, "first", f"{name}: {value}{others}.")
    difference = each["difference"]
    if difference is None:
        return _said(name, "missing", f"{name}: {value}; no seed in common with {first}, so nothing is compared.")
    signed = f"{difference['value']:+.4f}"
    if difference["holm_low"] is None:
        why = "one common seed says nothing about chance"
        return _said(name, "undecided", f"{name}: undecided against {first}: {signed}, but {why}; {value}.")
    bounds = f"{difference['holm_low']:+.4f} to {difference['holm_high']:+.4f}"
    if not difference["decided"]:
        same = "; every seed gave the same value" if difference["low"] == difference["high"] == 0 else ""
        text = f"undecided against {first}: the difference, {signed} ({bounds}), may be zero{same}"
        return _said(name, "undecided", f"{name}: {text}; {value}.")
    word = "better" if difference["value"] < 0 else "worse"
    p = (
        f"p = {difference['p_holm']:.2g} after Holm"
        if difference["p_holm"] > 0
        else "every seed gave the same difference"
    )
    return _said(name, word, f"{name}: {word} than {first} by {abs(difference['value']):.4f} ({bounds}; {p}); {value}.")


def _said(name: str, outcome: str, sentence: str) -> dict[str, Any]:
    return {"architecture": name, "outcome": outcome, "sentence": sentence}


def _why_missing(each: dict, expected: int) -> str:
    if each["chosen"] is None:
        states = [run["state"] for run in each["choosing_runs"]]
        if WAITING in states:
            return f"{states.count(WAITING)} of {len(states)} runs that choose from the grid are still waiting."
        return "every point of the grid diverged or failed."
    counts = {s: sum(run["state"] == s for run in each["runs"]) for s in (WAITING, FAILED, DIVERGED)}
    return ", ".join(f"{count} of {expected} runs {state}" for state, count in counts.items() if count) + "."


def interval(low: float | None, high: float | None, digits: int = 4) -> str:
    """` (1.2000 to 1.3000)`, or nothing."""
    return "" if low is None else f" ({low:.{digits}f} to {high:.{digits}f})"


def _notes(runner: Runner, found: Mapping[str, dict]) -> list[str]:
    """What limits the conclusions."""
    from zoo.study.expand import unequal

    notes = []
    for name, each in found.items():
        for key in each["edges"]:
            value = each["chosen_values"][key]
            notes.append(
                f"{name}: the chosen {key} = {value} is at the edge of the grid; the best value may lie outside."
            )
        for kind in ("choosing_runs", "runs"):
            for run in each[kind]:
                if run["state"] in (FAILED, DIVERGED):
                    why = run.get("why", "").splitlines()
                    notes.append(f"{run['run']} {run['state']}{f': {why[0]}' if why else ''}")
    waiting = runner.expected() - sum(
        run["state"] != WAITING for each in found.values() for run in (*each["choosing_runs"], *each["runs"])
    )
    if waiting:
        notes.append(f"{waiting} of {runner.expected()} runs are not done; what is said here may change.")
    if len(runner.runs.study.config.counting) < 3:
        notes.append("Fewer than three seeds count: intervals are wide, and little can be decided.")
    return [*notes, *(f"{note[0].upper()}{note[1:]}." for note in unequal(runner.runs))]


def _speedups(found: dict[str, dict], metric: str) -> Curve | None:
    """Put the effective speed-up at equal loss into each architecture; returns the fitted curve of the first.

    compute: FLOPs that the curve needs for the architecture's mean loss, over the FLOPs that it took; low and high
    from the interval of that loss.  extrapolated: the loss is below the first architecture's own.
    """
    first = next(iter(found.values()))
    curve = None
    points = mean_curve(first["runs"], "validation") if metric == "loss" else []
    if points:
        curve = fit_curve([p[0] * first["flops_per_token"] for p in points], [p[1] for p in points])
    for each in found.values():
        each["speedup"] = _speedup(each, first, curve) if curve else None
    return curve


def _speedup(each: dict, first: dict, curve: Curve) -> dict[str, Any] | None:
    done = [run for run in each["runs"] if run["state"] == DONE]
    if not done or each["mean_loss"] is None:
        return None
    took = sum(run["tokens"] for run in done) / len(done) * each["flops_per_token"]

    def times(loss: float | None) -> float | None:
        needed = curve.flops_for(loss) if loss is not None else None
        return needed / took if needed is not None else None

    mean = each["mean_loss"]
    low, high = times(mean["high"]), times(mean["low"])
    return {
        "compute": times(mean["value"]),
        "low": low,
        "high": high,
        "flops": took,
        "extrapolated": mean["value"] < first["mean_loss"]["value"],
    }


def mean_curve(runs: Sequence[dict], key: str) -> list[list[float]]:
    """[tokens, mean, lowest, highest] of the losses of the runs that are done, where all of them have one."""
    done = [run[key] for run in runs if run["state"] == DONE]
    if not done:
        return []
    by_tokens = [dict(map(tuple, curve)) for curve in done]
    common = [tokens for tokens in by_tokens[0] if all(tokens in each for each in by_tokens)]
    values = [(tokens, [each[tokens] for each in by_tokens]) for tokens in common]
    return [[tokens, sum(v) / len(v), min(v), max(v)] for tokens, v in values]


def equality(runs: Runs, points: Mapping[str, Point]) -> list[dict[str, Any]]:
    """What is equal between the architectures and what is not: {"what", "values", "equal"} in the order of a table."""
    recipes = {name: runs.recipes[name, point.label] for name, point in points.items()}
    rows = []
    for what, read in _COMPARED.items():
        values = {name: read(recipe) for name, recipe in recipes.items()}
        first = next(iter(values.values()))
        if what == "parameters":
            near = max(abs(value / first - 1) for value in values.values())
            tolerance = max(PARAMETERS_APART, runs.study.config.match.parameters if runs.study.config.match else 0)
            rows.append({"what": f"{what} (within {near:.2%})", "values": values, "equal": near <= tolerance})
            continue
        rows.append({"what": what, "values": values, "equal": all(value == first for value in values.values())})
    return rows


def _optimizer(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in recipe.train.optimizer.model_dump(mode="json").items() if key != "lr"}


_COMPARED = {
    "parameters": lambda r: model_cost(r.model, 1).parameters["total"],
    "training FLOPs per token": flops_per_token,
    "duration": lambda r: r.train.duration,
    "tokens a batch": lambda r: r.train.rows(seq_len_of(r)) * seq_len_of(r),
    "tokens a row": seq_len_of,
    "data": lambda r: {k: v for k, v in data_read(r).items() if k != "tokenizer"},
    "tokenizer and vocabulary": lambda r: [data_read(r)["tokenizer"], r.model.vocab_size],
    "order of the rows, by seed": lambda r: r.data.shuffle,
    "learning rate": lambda r: getattr(r.train.optimizer, "lr", None),
    "optimiser, without it": _optimizer,
    "schedule": lambda r: r.train.schedule.model_dump(mode="json"),
    "gradient clipping": lambda r: r.train.clip_norm,
    "precision": lambda r: r.train.precision,
    "validation": lambda r: [r.eval.batches, r.train.rows(seq_len_of(r))],
    "d_model, layers": lambda r: [r.model.d_model, len(r.model.expanded())],
}


def _measured(runner: Runner, found: Mapping[str, dict]) -> dict[str, Any]:
    """Times, speeds and machines."""
    from zoo.files import read_json

    each_run, architectures = {}, {}
    for name in found:
        point = runner.point(name)
        done = [run for run in (runner.runs.counting(name, point) if point else ()) if runner.state(run).name == DONE]
        runs = [run_measured(runner.folder, run) for run in done]
        speeds = [run["tokens_per_s"] for run in runs if run["tokens_per_s"]]
        times = [run["time_s"] for run in runs]
        file = runner.folder.speed / f"{name}.json"
        architectures[name] = {
            "tokens_per_s": sum(speeds) / len(speeds) if speeds else None,
            "time_s": sum(times) / len(times) if times else None,
            "decoding": read_json(file).get("rows", []) if file.is_file() else [],
            "time_curve": _time_curve(runs),
        }
        each_run[name] = [{key: v for key, v in run.items() if key != "validation_time"} for run in runs]
    _wall_speedups(found, architectures)
    machines = [run["environment"] for runs in each_run.values() for run in runs]
    distinct = [m for i, m in enumerate(machines) if m not in machines[:i]]
    return {"architectures": architectures, "runs": each_run, "machines": distinct}


def _time_curve(runs: Sequence[dict]) -> list[list[float]]:
    """[mean seconds, mean loss, lowest, highest] at each validation that all runs have."""
    curves = [run["validation_time"] for run in runs]
    if not curves:
        return []
    return [
        [sum(p[0] for p in at) / len(at), sum(p[1] for p in at) / len(at), min(p[1] for p in at), max(p[1] for p in at)]
        for at in zip(*curves, strict=False)
    ]


def _wall_speedups(found: Mapping[str, dict], measured: dict[str, dict]) -> None:
    """Effective speed-up in time: that in compute, times the ratio of the FLOPs a second that the runs reached."""
    rates = {}
    for name, each in found.items():
        speed = measured[name]["tokens_per_s"]
        rates[name] = speed * each["flops_per_token"] if speed else None
    first = rates[next(iter(found))]
    for name, each in found.items():
        compute = each["speedup"]["compute"] if each["speedup"] else None
        known = compute is not None and first and rates[name]
        measured[name]["speedup_time"] = compute * rates[name] / first if known else None
