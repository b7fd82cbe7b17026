"""`zoo bench eval`: the time of an evaluation by task; with `peers` lm-evaluation-harness on the same rows as well.

Each program is a process of its own, one after the other: what it compiles, and its peak memory, are its own. The clock
runs from texts to log-likelihoods, so that encoding counts, and loading a model and reading a task's data do not.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.bench import processes
from zoo.bench.machine import heading
from zoo.child import plugin_options
from zoo.errors import ZooError
from zoo.evaluation.command import parse_tasks
from zoo.evaluation.registry import make_tasks
from zoo.runs.weights import no_run_folder

PEER = "HFLM"
NO_TEXTS = "none of these tasks is scored by the likelihood of texts"


def measure(
    model: str,
    tasks: str,
    *,
    peers: bool,
    rows: int | None,
    batch_size: int,
    command: str,
    say: Callable[[str], None] = print,
    save: Callable[[dict], object] = lambda report: None,
) -> dict:
    """Time every task on a run folder or a transformers folder.  Returns the report as plain data.

    tasks: as of `zoo eval --tasks`.  rows: the first so many of each task.  batch_size: rows of a batch of the peer.
    save: given the report after each task.  Raises ZooError if the model or a task cannot be measured; a peer that
    fails leaves its reason in the report.
    """
    make_tasks(parse_tasks(tasks), rows=rows)  # a mistake is told at once, not by a process that has imported torch
    if not Path(model).is_dir():
        raise ZooError(f"bench eval: {no_run_folder(model)}")
    report: dict[str, Any] = {"machine": None, "command": command, "model": model, "rows": [], "failed": None}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = ["--tasks", tasks, *(["--rows", str(rows)] if rows else []), *(["--peers"] if peers else [])]
        for line in _lines(["zoo", model, str(folder), *asked], say):
            if "error" in line:
                raise ZooError(f"bench eval: {line['error']}")
            report["machine"] = line.pop("machine")
            report["rows"].append(line)
            save(report)
        if not peers:
            return report
        if not any(folder.glob("*.json")):
            report["failed"] = NO_TEXTS
            save(report)
            return report
        of_number = {row["number"]: row for row in report["rows"]}
        for line in _lines(["hflm", model, str(folder), "--batch-size", str(batch_size)], say):
            if "error" in line:
                report["failed"] = line["error"]
            else:
                of_number[line["number"]] |= {"peer": line} | _agreement(folder, line["number"])
            save(report)
    return report


def _lines(arguments: list[str], say: Callable) -> Iterator[dict]:
    """What a process of evaluation_step prints, one object for each task; {"error": reason} last if it failed."""
    with tempfile.TemporaryFile("w+") as errors:
        command = processes.command("evaluation_step", [*arguments, *plugin_options()])
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            try:
                for text in process.stdout:
                    if text.startswith('{"task"'):
                        found = json.loads(text)
                        say(f"{found['task']}: {arguments[0]} {found['seconds']:.1f} s")
                        yield found
            except BaseException:  # Ctrl-C
                process.kill()
                raise
        errors.seek(0)
        reason = processes.why_failed(process.returncode, errors.read())
    if reason is not None:
        yield {"error": reason}


def _agreement(folder: Path, number: int) -> dict[str, float]:
    """The largest difference of a log-likelihood in nats, and the share of rows with the same likeliest option."""
    ours, theirs = (np.load(folder / f"{number}.{name}.npy") for name in ("zoo", "hflm"))
    ends = np.cumsum(json.loads((folder / f"{number}.json").read_text())["options"])[:-1]
    best, of_peer = ([int(part.argmax()) for part in np.split(logs, ends)] for logs in (ours, theirs))
    return {
        "largest_difference": float(np.abs(ours - theirs).max()),
        "same_answer": float(np.mean(np.array(best) == np.array(of_peer))),
    }


def as_markdown(report: dict) -> str:
    """The table of a report, with chip, versions, date and command."""
    lines, rows = heading(report), report["rows"]
    if not any("peer" in row for row in rows):
        lines += ["| task | rows | seconds | peak memory, GiB |", "|---|---:|---:|---:|"]
        lines += [f"| {row['task']} | {row['rows']:,} | {row['seconds']:.2f} | {_gib(row)} |" for row in rows]
    else:
        lines += [
            f"| task | rows | zoo, s | {PEER}, s | {PEER} / zoo | same answer | largest difference, nats |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *map(_line, rows),
        ]
        both = [row for row in rows if "peer" in row]
        ours, theirs = sum(row["seconds"] for row in both), sum(row["peer"]["seconds"] for row in both)
        n = sum(row["rows"] for row in both)
        lines.append(f"| all that both did | {n:,} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} | | |")
        peaks = max(rows, key=lambda row: row["peak_bytes"]), max(both, key=lambda row: row["peer"]["peak_bytes"])
        lines += ["", f"Peak memory, GiB: zoo {_gib(peaks[0])}, {PEER} {_gib(peaks[1]['peer'])}."]
    if report["failed"]:
        lines += ["", f"{PEER} failed: {report['failed']}"]
    return "\n".join(lines) + "\n"


def _gib(row: dict) -> str:
    return f"{row['peak_bytes'] / 2**30:.1f}"


def _line(row: dict) -> str:
    if "peer" not in row:
        return f"| {row['task']} | {row['rows']:,} | {row['seconds']:.2f} | | | | |"
    theirs = row["peer"]["seconds"]
    return (
        f"| {row['task']} | {row['rows']:,} | {row['seconds']:.2f} | {theirs:.2f} | {theirs / row['seconds']:.2f} "
        f"| {row['same_answer']:.1%} | {row['largest_difference']:.3g} |"
    )
