"""What a run folder holds, for a comparison: its curve, its final and best validation. No torch."""

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from zoo.counting.model_cost import model_cost
from zoo.errors import ZooError
from zoo.files import present, read_json, sha256
from zoo.parts import TASKS
from zoo.report.columns import Column
from zoo.runs.folder import RunFolder
from zoo.runs.metrics import read_metrics

if TYPE_CHECKING:
    from zoo.evaluation.results import Result


def facts(column: Column) -> dict[str, Any]:
    """Progress, final and best validation, and the curves of a run.

    `tokens` and `flops` count from the first batch; a training step is three forwards, as in `zoo cost`.  `final` is
    the latest validation, `best` the lowest; both None where there was none.  `diverged_at` is the first batch whose
    loss is no finite number, None if all are: such losses are in no curve and are neither final nor best.  `data` is
    the record of what it read, None for runs of earlier versions; `damage` says what is wrong with its weights.
    `evaluation` holds the scores of `zoo eval` by task and metric, of the run's own weights only.
    """
    from zoo.training.continuing import damage  # imports numpy, which recipes alone do without

    summary = column.known_run.read_summary()
    check_metrics(column.known_run, summary)
    records = read_metrics(column.known_run.metrics, needed=("tokens", "time_s"))
    diverged = [record["batch"] for record in records if not all(map(math.isfinite, _losses(record)))]
    seq_len = column.known_recipe.seq_len
    flops = 3 * model_cost(column.known_recipe.model, seq_len).flops_per_token
    finite = [record for record in records if record["batch"] not in diverged]
    validations = [record for record in finite if "validation_loss" in record]
    steps = [record for record in finite if "loss" in record]
    latest = records[-1] if records else {}
    return {
        "finished": summary is not None,
        "lacks": _lacks(column.known_run),
        "damage": None if summary is None else damage(column.known_run, summary),
        "data": _data(column.known_run),
        "batches": latest.get("batch", 0),
        "tokens": latest.get("tokens", 0),
        "time_s": latest.get("time_s", 0.0),
        "flops": flops * latest.get("tokens", 0),
        "flops_per_token": flops,
        "tokens_per_s": steps[-1].get("tokens_per_s") if steps else None,
        "diverged_at": diverged[0] if diverged else None,
        "final": _validation([] if diverged else validations[-1:]),
        "best": _validation(sorted(validations, key=lambda record: record["validation_loss"])[:1]),
        "environment": _environment(column.known_run),
        "evaluation": _evaluation(column.known_run, summary),
        "training": [[r["tokens"], r["time_s"], r["loss"]] for r in steps],
        "validation": [[r["tokens"], r["time_s"], r["validation_loss"]] for r in validations],
    }


def check_metrics(folder: RunFolder, summary: dict[str, Any] | None) -> None:
    """Raise ZooError if a complete run's metrics are not those that training wrote."""
    expected = None if summary is None else summary.get("metrics_sha256")
    if expected is None:  # not finished, or of an earlier version
        return
    found = sha256(folder.metrics)
    if found != expected:
        raise ZooError(
            f"{folder.metrics}: damaged or edited: SHA-256 is {found[:16]}..., {folder.summary.name} says "
            f"{str(expected)[:16]}...; bring it back"
        )


def _lacks(folder: RunFolder) -> str | None:
    """The name of the file without which the run counts as not finished."""
    missing = (path.name for path in (folder.summary, folder.weights) if not present(path))
    return next(missing, None)


def _losses(record: dict) -> list[float]:
    return [record[name] for name in ("loss", "validation_loss") if name in record]


def _validation(records: list[dict]) -> dict[str, Any] | None:
    if not records:
        return None
    record = records[0]
    return {
        "batch": record["batch"],
        "loss": record["validation_loss"],
        "bits_per_byte": record.get("validation_bits_per_byte"),
    }


def _data(folder: RunFolder) -> dict[str, Any] | None:
    from zoo.data.identity import DataRecord

    return DataRecord.read(folder.data).model_dump() if present(folder.data) else None


def _evaluation(folder: RunFolder, summary: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Task -> metric -> numbers, from eval.json; results of other weights are left out.

    A result of another version of its task than this one's has the version in its name: it stands in a line of its own.
    """
    path = folder.path / "eval.json"
    if not present(path):
        return {}
    from zoo.evaluation.results import read_results  # imports numpy, which recipes alone do without

    weights = None if summary is None else summary.get("sha256")
    return {
        _versioned(result): {
            name: {**numbers, "share": result.is_share(name), "examples": result.examples_hash}
            for name, numbers in result.metrics.items()
        }
        for result in read_results(path)
        if weights is None or result.model.get("digest") == weights
    }


def _versioned(result: "Result") -> str:
    known = result.version
    if TASKS.knows(result.task):
        with suppress(ValueError):  # a task of another package that cannot be imported here
            known = TASKS.config_class(result.task).version
    return result.label if result.version == known else f"{result.label}, version {result.version}"


def _environment(folder: RunFolder) -> dict[str, Any]:
    """Device, processes and precision of the latest session; empty if they were not recorded."""
    if not present(folder.environment):
        return {}
    found = read_json(folder.environment)
    return {name: found.get(name) for name in ("device", "processes", "precision", "threads")}
