"""What the runs of a study found, as plain data: `results` follows from recipes and seeds alone, `measured` has clocks.

Two studies of the same file have the same results whatever was stopped, killed or resumed in between; times, speeds
and machines are kept apart, in `measured`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from zoo.counting.model_cost import model_cost
from zoo.files import present, read_json
from zoo.recipe import Recipe
from zoo.report.runs import check_metrics
from zoo.runs.folder import RunFolder
from zoo.runs.metrics import read_metrics
from zoo.study.config import StudyError
from zoo.study.expand import Run
from zoo.study.kept import read_summary
from zoo.study.sharing import runs_on_device
from zoo.study.state import DONE, StudyFolder, has_scores

MOST_POINTS = 200


def flops_per_token(recipe: Recipe) -> float:
    """Training FLOPs of a token: three forwards."""
    return 3 * model_cost(recipe.model, recipe.seq_len).flops_per_token


def final_loss(folder: StudyFolder, run: Run) -> float | None:
    """The last validation loss of a run, None if there is none or it is not finite."""
    if (known := folder.kept(run)) is not None:
        return known["results"]["loss"]
    found = [r["validation_loss"] for r in read_metrics(folder.folder(run).metrics) if "validation_loss" in r]
    return found[-1] if found and math.isfinite(found[-1]) else None


def run_results(folder: StudyFolder, run: Run, state: str, why: str) -> dict[str, Any]:
    """The results of one run; only `state` and `why` for one that is not done."""
    about = {"run": run.id, "seed": run.seed, "point": run.point.label, "state": state}
    if state != DONE:
        return about | ({"why": why} if why else {})
    if (known := folder.kept(run)) is not None:
        return known["results"]
    kept = folder.folder(run)
    summary = read_summary(kept) or {}  # of a run that is done it is there
    check_metrics(kept, summary)
    records = read_metrics(kept.metrics, needed=("tokens", "time_s"))
    every = [r for r in records if "validation_loss" in r]
    validations = [r for r in every if math.isfinite(r["validation_loss"])]
    last = every[-1] if every and every[-1] in validations[-1:] else {}  # one before it is not the final loss
    return about | {
        "batches": summary["batches"],
        "tokens": summary["tokens"],
        "parameters": summary["parameters"],
        "weights_sha256": summary["sha256"],
        "data": _rows_digest(kept),
        "loss": last.get("validation_loss"),
        "bits_per_byte": last.get("validation_bits_per_byte"),
        "best_loss": min((r["validation_loss"] for r in validations), default=None),
        "validation": [[r["tokens"], r["validation_loss"]] for r in validations],
        "training": _thinned([[r["tokens"], r["loss"]] for r in records if math.isfinite(r.get("loss", math.nan))]),
        **_scores(folder, run, summary["sha256"]),
    }


def _rows_digest(kept: RunFolder) -> str | None:
    """A hash of the rows that a run was trained on; None of a run by a version that wrote no data.json."""
    if not present(kept.data):
        return None
    from zoo.data.identity import DataRecord  # imports numpy

    return DataRecord.read(kept.data).rows_digest


def rows_of(folder: StudyFolder, run: Run) -> str | None:
    """A hash of the rows that a run which is done was trained on; None if no version recorded it."""
    # Results of an earlier version lack the rows; the run's folder may still have them.
    return run_results(folder, run, DONE, "").get("data") or _rows_digest(folder.folder(run))


def refuse_other_data(
    folder: StudyFolder, done: Iterable[tuple[Run, str | None]], prepared: Iterable[tuple[Run, str | None]] = ()
) -> None:
    """Raise StudyError if runs that are done and whose recipes name the same data were trained on other rows.

    A corpus that grew, or a tokenizer learnt by another version, gives losses that cannot be compared.
    done: runs with `rows_of` each.  prepared: runs that are not trained yet, with the rows that are there for them now.
    """
    found: dict[str, dict[str | None, list[Run]]] = {}
    for run, rows in done:
        found.setdefault(source_of_rows(run), {}).setdefault(rows, []).append(run)
    now = {source_of_rows(run): (run, rows) for run, rows in prepared}
    for source, of_rows in found.items():
        if source in now:
            run, kept = now[source]
            newest = f"those prepared now for {run.id}"
        else:
            kept = max(of_rows, key=lambda rows: max(_written(folder, run) for run in of_rows[rows]))
            newest = f"the newest, {of_rows[kept][0].id}"
        others = [run for rows, runs in of_rows.items() if rows != kept for run in runs]
        if others:
            paths = [path for run in others for path in _traces(folder, run)]
            why = "the text or the tokenizer changed"
            if None in of_rows:
                why += ", or an earlier version did not record the rows"
            raise StudyError(
                f"{folder.path}: runs of this study cannot be compared: {len(others)} were trained on other rows than "
                f"{newest}, because {why}: {', '.join(map(str, paths))}. "
                "Remove these to train the runs again, or give the study another folder with out: ..."
            )


def source_of_rows(run: Run) -> str:
    """What decides the rows of a run, whatever the size of its model: equal for runs that are to have the same rows."""
    data = run.recipe.data.model_dump(mode="json", exclude={"workers", "cache_dir"})
    return json.dumps([data, run.recipe.seq_len], sort_keys=True)


def _traces(folder: StudyFolder, run: Run) -> list[Path]:
    return [path for path in (folder.outcome(run), folder.folder(run).path) if path.exists()]


def _written(folder: StudyFolder, run: Run) -> float:
    return max((path.stat().st_mtime for path in _traces(folder, run)), default=0.0)


def _thinned(points: list[list[float]]) -> list[list[float]]:
    """At most MOST_POINTS points, each the mean loss of the stretch that ends there."""
    size = max(1, -(-len(points) // MOST_POINTS))
    parts = [points[max(0, end - size) : end] for end in range(len(points), 0, -size)][::-1]
    return [[part[-1][0], sum(loss for _, loss in part) / len(part)] for part in parts]


def _scores(folder: StudyFolder, run: Run, digest: str) -> dict[str, dict[str, Any]]:
    """scores: task label -> metric -> value, rows, chance, better, share.  versions: task label -> of the task."""
    path = folder.folder(run).path / "eval.json"
    if not present(path):
        return {"scores": {}, "versions": {}}
    from zoo.evaluation.results import read_results

    kept = ("value", "rows", "chance", "better", "share")
    found = [result for result in read_results(path) if result.model.get("digest") == digest]
    scores = {
        result.label: {name: {key: numbers.get(key) for key in kept} for name, numbers in result.metrics.items()}
        for result in found
    }
    return {"scores": scores, "versions": {result.label: result.version for result in found}}


def keep(folder: StudyFolder, run: Run, tasks: Mapping[str, int]) -> None:
    """Write down the results of a run that is done, unless they are, with the scores of these tasks."""
    known = folder.kept(run)
    if known is None or not has_scores(known["results"], tasks):
        folder.forget(run)
        folder.keep(run, run_results(folder, run, DONE, ""), run_measured(folder, run))


def tokens_and_time(folder: StudyFolder, run: Run) -> dict[str, float]:
    """`tokens` and `time_s` of a run that is done."""
    known = folder.kept(run)
    if known is not None:
        return {"tokens": known["results"]["tokens"], "time_s": known["measured"]["time_s"]}
    found = read_summary(folder.folder(run)) or {}
    return {key: found[key] for key in ("tokens", "time_s") if key in found}


def device_of(folder: StudyFolder, run: Run) -> str | None:
    """What a run was trained on, the name of a GPU or a processor; None if it does not say."""
    if (known := folder.kept(run)) is not None:
        found = known["measured"]["environment"].get("device")
    else:
        file = folder.folder(run).environment
        found = read_json(file).get("device") if present(file) else None
    return found if isinstance(found, str) else None


def run_measured(folder: StudyFolder, run: Run) -> dict[str, Any]:
    """Time and speed of a run that is done, and what it ran on.

    time_s: seconds of training.  tokens_per_s: the median over the records of its metrics.  runs_on_device: how many
    runs were on its device, itself included, as a mean over its time; None if that is not known.
    """
    if (known := folder.kept(run)) is not None:
        return {"runs_on_device": None} | known["measured"]
    kept = folder.folder(run)
    summary = read_summary(kept) or {}  # of a run that is done it is there
    records = read_metrics(kept.metrics, needed=("tokens", "time_s"))
    speeds = [r["tokens_per_s"] for r in records if "tokens_per_s" in r]
    environment = read_json(kept.environment) if present(kept.environment) else {}
    named = ("device", "precision", "threads", "versions", "git", "platform")
    return {
        "run": run.id,
        "time_s": summary["time_s"],
        "tokens_per_s": median(speeds) if speeds else None,
        "runs_on_device": runs_on_device(folder, run),
        "validation_time": [[r["time_s"], r["validation_loss"]] for r in records if "validation_loss" in r],
        "environment": {name: environment.get(name) for name in named},
    }
