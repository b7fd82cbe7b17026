"""`zoo bench train`: speed, memory and a breakdown of the training step of recipes, each in a process of its own.

What runs is the engine of `zoo train`, Composer's loop and the zoo's callbacks included, on random tokens: nothing is
downloaded or prepared. With `data`, the rows are the recipe's own, read as `zoo train` reads them. Peers are
transformers' Llama of the same width, depth and heads, with liger-kernel's operations, in a plain loop, with the same
batch, micro-batch and optimiser.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any

from zoo.bench import processes
from zoo.bench.machine import heading
from zoo.child import plugin_options
from zoo.errors import ZooError

WARM_UP = 4  # batches before the clock starts: kernels are compiled, the micro-batch is found, graphs are captured
PROFILED = 3  # batches under the profiler after the first one, after those that are timed
PEERS = {"llama + liger": "liger", "llama + liger, compiled": "liger-compiled"}
TIMEOUT_S = 1800


def measure(
    recipes: Iterable[str],
    overrides: list[str],
    *,
    steps: int,
    data: bool,
    peers: bool,
    command: str,
    devices: int = 1,
    say: Callable[[str], None] = print,
    save: Callable[[dict], object] = lambda report: None,
) -> dict:
    """Measure every recipe, and with `peers` the peers of each.  Returns the report as plain data.

    steps: batches that are timed.  devices: GPUs that train together, one process each; their number is in each row.
    save: given the report after each measurement.
    Raises ZooError if a recipe cannot be measured; a peer that fails leaves its reason in the report.
    """
    if peers and devices > 1:
        raise ZooError("bench train: --peers measures on one GPU; leave out --devices")
    report: dict[str, Any] = {"machine": None, "command": command, "rows": [], "failed": []}
    for path in recipes:
        row = _in_a_process(path, overrides, steps, data, None, say, devices)
        if "error" in row:
            raise ZooError(f"bench train: {path}: {row['error']}")
        report["machine"] = report["machine"] or row["machine"]
        report["rows"].append(row)
        save(report)
        for name, peer in PEERS.items() if peers else ():
            asked = [*overrides, f"train.micro_batch={row['micro_batch']}"]
            found = _in_a_process(path, asked, steps, False, peer, say)
            report["failed" if "error" in found else "rows"].append({"peer_of": row["name"]} | found | {"name": name})
            save(report)
    return report


def _in_a_process(
    path: str, overrides: list[str], steps: int, data: bool, peer: str | None, say: Callable, devices: int = 1
) -> dict:
    """One measurement; {"error": reason} if it failed. Peak memory, parts and start-up are those of one process."""
    say(f"measuring {path}{f' as {peer}' if peer else ''}")
    asked = [path, "--steps", str(steps), "--started", str(time.time())]
    asked += ["--data"] * data + (["--peer", peer] if peer else [])
    asked += ["--devices", str(devices)] if devices > 1 else []
    asked += [part for override in overrides for part in ("--set", override)]
    command = processes.command("train_step", [*asked, *plugin_options()])
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {TIMEOUT_S} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"name"')]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    return {"error": processes.why_failed(done.returncode, done.stderr) or "the process printed no measurement"}


def as_markdown(report: dict) -> str:
    """The tables of a report, with chip, versions, date and command."""
    lines = heading(report)
    lines += [
        "| | micro-batch | CUDA graph | step, ms | tokens/s | MFU | peak memory, GiB | first step after, s |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [_speed_line(row) for row in report["rows"]]
    lines += _parts(
        report["rows"], "parts_ms", "Milliseconds of a step by category, by the profiler; host: no kernel runs."
    )
    if any(row.get("hidden_ms") for row in report["rows"]):
        lines += ["", "Communication beside other kernels, which is no part of the step's time:", ""]
        lines += [f"- {_name(row)}: {row['hidden_ms']:.1f} ms" for row in report["rows"] if row.get("hidden_ms")]
    about = "Seconds to the end of the first step by part; compiling: the wait for the processes that compile kernels."
    lines += _parts(report["rows"], "start_s", about)
    lines += ["", *(f"{row['peer_of']}, {row['name']} failed: {row['error']}" for row in report["failed"])]
    return "\n".join(lines).rstrip() + "\n"


def _parts(rows: list[dict], key: str, about: str) -> list[str]:
    """A table of the numbers by name that rows have under a key; nothing if none has any."""
    rows = [row for row in rows if row.get(key)]
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows for name in row[key]))
    lines = ["", about, "", "| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for row in rows:
        cells = (f"{row[key].get(name, 0.0):.1f}" for name in names)
        lines.append(f"| {_name(row)} | " + " | ".join(cells) + " |")
    return lines


def _name(row: dict) -> str:
    name = f"{row['peer_of']}: {row['name']}" if "peer_of" in row else row["name"]
    return f"{name}, {row['devices']} devices" if row.get("devices", 1) > 1 else name


def _speed_line(row: dict) -> str:
    mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
    memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f}"
    return (
        f"| {_name(row)} | {row['micro_batch']} x {row['seq_len']:,} | {row['graph']} | {row['step_ms']:.1f} "
        f"| {row['tokens_per_s']:,.0f} | {mfu} | {memory} | {row['first_step_s']:.1f} |"
    )
