"""Means and differences of a study, of the loss and of every score, and what is corrected together. No torch.

Two families are corrected by Holm's method, each by itself: the differences of the loss, on which the verdicts rest,
and those of the tasks' primary metrics. So a further task never makes the verdicts weaker, and a further metric of a
task takes no power from any decision.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zoo.report.columns import data_read
from zoo.study.expand import Runs
from zoo.study.runner import Runner
from zoo.study.state import DONE, has_scores
from zoo.study.statistics import Difference, Mean, difference, differences, paired

MEANS = (
    "Means and 95% intervals are Student's t over the seeds that count; seeds that chose from the grid are not among "
    "them."
)
FAMILY = "Together the corrected intervals of a family are right with 95%."
OTHER_METRICS = (
    "The other metrics of the tasks are in no family: their intervals are not corrected, and nothing is decided."
)


def about(families: Mapping[str, dict]) -> str:
    """How the numbers of a report were made, with the families of `conclude` in words."""
    sizes = {"the loss": families["loss"], "the primary metrics of the tasks": families["scores"]}
    said = [f"{each['comparisons']} of {what}" for what, each in sizes.items() if each["comparisons"]]
    if not said:
        return MEANS
    which = f"as {'two families' if len(said) > 1 else 'one family'}: {' and '.join(said)}"
    corrected = f"Differences are paired by seed and corrected for their number by Holm's method, {which}. {FAMILY}"
    return " ".join([MEANS, corrected, *([OTHER_METRICS] if families["scores"]["comparisons"] else [])])


def one_tokenizer(runs: Runs) -> bool:
    """Whether the architectures cut a text into the same tokens."""
    recipes = [runs.recipes[name, runs.points[0].label] for name in runs.architectures]
    tokenizers = [(data_read(recipe)["tokenizer"], recipe.model.vocab_size) for recipe in recipes]
    return all(each == tokenizers[0] for each in tokenizers)


def by_seed(architecture: dict, read) -> dict[int, float]:
    """Seed -> a number of the runs that are done and have it."""
    values = {run["seed"]: read(run) for run in architecture["runs"] if run["state"] == DONE}
    return {seed: value for seed, value in values.items() if value is not None}


def conclude(found: dict[str, dict], metric: str, runner: Runner) -> dict[str, dict]:
    """Put means and differences into each architecture, of the loss and of every score; returns the families.

    found: architecture -> its facts and runs, the one that the others are compared with first.  metric: `loss` or
    `bits_per_byte`.  Returns {"loss": {"comparisons"}, "scores": {"comparisons", "primary": task -> metric}}.
    """
    first, *others = found
    losses = {name: by_seed(each, lambda run: run[metric]) for name, each in found.items()}
    compared = differences({name: paired(losses[first], losses[name]) for name in others})
    for name, each in found.items():
        for key in ("loss", "bits_per_byte"):
            mean = Mean.of(list(by_seed(each, lambda run, key=key: run[key]).values()))
            each[f"mean_{key}"] = mean.as_dict() if mean else None
        each["difference"] = compared[name].as_dict() if name in compared else None
        each["scores"] = {}
    return {"loss": {"comparisons": _tested(compared)}, "scores": _conclude_scores(found, runner)}


def _tested(compared: Mapping[Any, Difference]) -> int:
    return sum(each.p is not None for each in compared.values())


def _conclude_scores(found: dict[str, dict], runner: Runner) -> dict[str, Any]:
    """Put the scores into each architecture; returns the family: {"comparisons", "primary": task -> its metric}."""
    first, *others = found
    tasks, names = runner.tasks, _score_names(found, runner)
    values = {
        (name, *key): by_seed(each, lambda run, key=key: _score(run, key, tasks))
        for name, each in found.items()
        for key in names
    }
    compared_metrics, primary = _compared_metrics(runner)
    pairs = {
        (name, *key): paired(values[(first, *key)], values[(name, *key)])
        for name in others
        for key in names
        if key in compared_metrics
    }
    steps = {key: _step(numbers) for key, numbers in names.items()}
    family = differences(
        {key: each for key, each in pairs.items() if primary[key[1]] == key[2]},
        {key: steps[key[1:]] for key in pairs},
    )
    by_itself = {key: difference(each, steps[key[1:]]) for key, each in pairs.items() if each and key not in family}
    for name, each in found.items():
        for (task, metric), numbers in names.items():
            mean = _mean(values[name, task, metric], numbers)
            key = name, task, metric
            apart = family.get(key) or by_itself.get(key)
            each["scores"].setdefault(task, {})[metric] = {
                "primary": primary[task] == metric,
                "mean": mean.as_dict() if mean else None,
                "difference": apart.as_dict() if apart else None,
                **{key: numbers.get(key) for key in ("chance", "better", "share", "rows")},
            }
    judged = {task: metric for task, metric in primary.items() if (task, metric) in names}
    return {"comparisons": _tested(family), "primary": judged}


def _score_names(found: Mapping[str, dict], runner: Runner) -> dict[tuple[str, str], dict]:
    """(task, metric) -> its numbers in some run, in the order of the study's tasks and of their metrics.

    Runs may have been scored on tasks, or versions of them, that are not in the study.
    """
    names: dict[tuple[str, str], dict] = {}
    for task, version in runner.tasks.items():
        for each in found.values():
            for run in each["runs"]:
                if task in run.get("scores", {}) and has_scores(run, {task: version}):
                    for metric, numbers in run["scores"][task].items():
                        names.setdefault((task, metric), numbers)
    return names


def _mean(of_seeds: Mapping[int, float], numbers: Mapping[str, Any]) -> Mean | None:
    """Mean over seeds; the interval of a share ends at 0 and at 1."""
    mean = Mean.of(list(of_seeds.values()), _step(numbers))
    if mean is None or mean.low is None or mean.high is None or not numbers.get("share"):
        return mean
    return replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high))


def _step(numbers: Mapping[str, Any]) -> float:
    """Of which number the values of a metric are multiples: one row, of a share of rows; 0 of others."""
    return 1 / numbers["rows"] if numbers.get("share") and numbers.get("rows") else 0.0


def _compared_metrics(runner: Runner) -> tuple[set[tuple[str, str]], dict[str, str | None]]:
    """The (task, metric) that compare the architectures, and the primary metric of each task, None if it has none.

    A loss per token does not compare architectures with different tokenizers. The first metric that does is then the
    primary one.
    """
    same = one_tokenizer(runner.runs)
    usable = {task.label: [m.name for m in task.metrics if same or not m.per_token] for task in runner.made_tasks}
    primary = {label: next(iter(names), None) for label, names in usable.items()}
    return {(label, name) for label, names in usable.items() for name in names}, primary


def _score(run: dict, key: tuple[str, str], tasks: Mapping[str, int]) -> float | None:
    task, metric = key
    if not has_scores(run, {task: tasks[task]}):
        return None
    return run["scores"][task].get(metric, {}).get("value")
