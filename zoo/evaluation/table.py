"""Results and tasks as plain text tables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.evaluation.registry import task_class
from zoo.evaluation.results import Result


def as_table(results: Mapping[str, Sequence[Result]]) -> str:
    """One row a task and metric, one column a model: value and 95% interval, with the chance level."""
    labels = list(dict.fromkeys(result.label for found in results.values() for result in found))
    by_model = {model: {result.label: result for result in found} for model, found in results.items()}
    names = short_names(results)
    head = ["task", "metric", "chance", *names.values()]
    lines = [head]
    for label in labels:
        shown = next(found[label] for found in by_model.values() if label in found)
        for i, name in enumerate(shown.metrics):
            cells = [
                _cell(found[label].metrics.get(name), shown, name) if label in found else ""
                for found in by_model.values()
            ]
            chance = shown.metrics[name]["chance"]
            lines.append([label if i == 0 else "", name, "" if chance is None else number(chance, shown, name), *cells])
    foot = "value (95% interval, bootstrap over rows); chance: a model that guesses"
    notes = [
        *_notes_of_results({names[model]: found for model, found in results.items()}),
        *_notes_between(labels, list(by_model.values())),
    ]
    return aligned(lines, left=2) + "\n" + "\n".join([foot, *notes]) + "\n"


def short_names(models: Iterable[str]) -> dict[str, str]:
    """The name of each model's folder; its path as it was given where two folders have one name."""
    names = {model: Path(model).name or model for model in models}
    return {model: model if list(names.values()).count(name) > 1 else name for model, name in names.items()}


def _notes_of_results(results: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """What limits a score by itself: rows that were cut, or fewer rows than were asked for."""
    for model, found in results.items():
        for result in found:
            name = f"{model}: {result.label}"
            if result.truncated:
                yield f"{name}: {result.truncated:,} of {result.rows:,} rows were cut at the left to fit"
            asked = (result.settings.get("rows") or 0) * len(result.settings.get("lengths") or (1,))
            if result.rows < asked:
                yield f"{name}: {result.rows:,} rows, all that there are; {asked:,} were asked for"


def _notes_between(labels: Sequence[str], models: Sequence[Mapping[str, Result]]) -> Iterator[str]:
    """What keeps the scores of several models from being compared."""
    for label in labels:
        found = [model[label] for model in models if label in model]
        if len({result.examples_hash for result in found}) > 1:
            yield (
                f"{label}: the models were given different rows, because their tokenizers, contexts, held-out texts or "
                "training tasks differ"
            )
        if len({result.model.get("tokenizer") for result in found}) > 1 and "nats" in found[0].metrics:
            yield f"{label}: nats are per token, and the tokenizers differ; compare bits_per_byte where it is given"


def _cell(numbers: Mapping[str, Any] | None, result: Result, name: str) -> str:
    if numbers is None:
        return ""
    value = number(numbers["value"], result, name)
    if numbers["low"] is None:
        return value
    low, high = (number(numbers[key], result, name) for key in ("low", "high"))
    return f"{value} ({low} to {high})"


def number(value: float, result: Result, name: str) -> str:
    """A value as its metric is shown: a share as a percentage."""
    return f"{100 * value:.1f}%" if result.is_share(name) else f"{value:.3f}"


def list_table(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> str:
    """What each task measures, its rows, its chance level, and where its data come from; then the groups."""
    lines = [["task", "measures", "rows", "chance", "data"]]
    for name in names:
        task = task_class(name)
        lines.append([name, task.measures, task.row_count(), task.chance_text(), task.data_from])
    listed = "\n".join(f"{group}: {', '.join(tasks)}" for group, tasks in groups.items())
    return f"{aligned(lines, left=2)}\n\ngroups\n{listed}\n"


def aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Columns of one width each; the first `left` of them begin at the left, the others end at the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    rows.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(row.rstrip() for row in rows) + "\n"
