"""Prefill and training speed and peak memory of one recipe on this machine, in a process of its own.

    python -m zoo.report.measure recipes/tiny/nsa.yaml --seq-len 1024

Prints one JSON object. One row of random tokens. Prefill: all tokens into the cache and the logits of the last.
Training: forward, loss, backward, one AdamW step. bf16 mixed precision on CUDA, float32 on a CPU.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.child import plugin_options, python_module
from zoo.report.columns import Column

MIN_REPEATS, MIN_SECONDS = 3, 2.0


def measure_column(column: Column, seq_len: int | None, overrides: Sequence[str] = ()) -> tuple[Column, dict | None]:
    """(column, what was measured); a failure is the column's error, its last line of output the reason.

    seq_len: default the recipe's max_seq_len.  overrides: as after --set, for a recipe that is no run.
    """
    if column.recipe is None or column.error:
        return column, None
    source = str(column.run.recipe) if column.run else column.source
    overrides = () if column.run else overrides  # a run's recipe is resolved
    arguments = [source, *(["--seq-len", str(seq_len)] if seq_len else []), *plugin_options()]
    arguments += [part for override in overrides for part in ("--set", override)]
    command = python_module("zoo.report.measure", arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return column, json.loads(done.stdout.splitlines()[-1])
    said = [line for line in done.stderr.splitlines() if line.strip()]
    why = said[-1] if said else f"the process ended with {done.returncode}"
    return replace(column, error=f"measuring failed: {why}"), None


def measure(recipe, seq_len: int) -> dict[str, Any]:
    """Medians over at least three repetitions and two seconds, after one that does not count.

    Peak bytes: on CUDA those that torch allocated; on a CPU the process's resident set, less what it was before the
    model was built. The prefill's peak is taken before any gradient exists.
    """
    import torch

    import zoo
    from zoo.training.optimizer import make_optimizer

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    memory = _Memory(on_gpu)
    model = zoo.build_model(recipe, device=str(device))
    generator = torch.Generator().manual_seed(recipe.seed)
    tokens_BT = torch.randint(recipe.model.vocab_size, (1, seq_len + 1), generator=generator).to(device)
    inputs_BT, labels_BT = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
    optimizer = make_optimizer(model, recipe.train.optimizer)
    model.activation_checkpointing = recipe.train.activation_checkpointing
    model.narrow_stream = recipe.train.residual_stream == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            loss = model.loss(inputs_BT, labels_BT)
        with torch.autograd.set_multithreading_enabled(False):  # as in `zoo train`
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    prefill, cache_bytes = _prefill(model, inputs_BT)
    prefill_s, prefill_peak = _time(prefill, on_gpu), memory.peak()
    del prefill  # and with it the cache
    training_s, training_peak = _time(step, on_gpu), memory.peak()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "precision": "bf16" if on_gpu else "fp32",
        "threads": torch.get_num_threads(),
        "seq_len": seq_len,
        "prefill_tokens_per_s": seq_len / prefill_s,
        "training_tokens_per_s": seq_len / training_s,
        "prefill_peak_bytes": prefill_peak,
        "cache_bytes": cache_bytes,
        "training_peak_bytes": training_peak,
    }


def _prefill(model, inputs_BT) -> tuple[Callable[[], None], int | None]:
    """(a call that reads the tokens into a cache, bytes of that cache).

    Without a cache, and None, where a block of another package keeps none.
    """
    import torch

    from zoo.errors import ZooError

    on_gpu = inputs_BT.is_cuda
    autocast = torch.autocast(inputs_BT.device.type, torch.bfloat16, enabled=on_gpu)
    try:
        cache = model.new_cache(*inputs_BT.shape, dtype=torch.bfloat16 if on_gpu else None)
    except ZooError:

        def without() -> None:
            with torch.no_grad(), autocast:
                model.logits(model.hidden(inputs_BT)[:, -1])

        return without, None

    def prefill() -> None:
        cache.reset()
        with autocast:
            model.next_logits(inputs_BT, cache)

    return prefill, cache.nbytes


def training_tensors(recipe, seq_len: int) -> int:
    """Peak bytes of tensors on the CUDA device in training steps of one row, as counting/run_cost states them.

    The gradients of an earlier micro-batch are there, as in `zoo train` with more than one row a batch.
    """
    import torch

    import zoo
    from zoo.training.optimizer import make_optimizer

    model = zoo.build_model(recipe, device="cuda")
    model.activation_checkpointing = recipe.train.activation_checkpointing
    model.narrow_stream = recipe.train.residual_stream == "bf16"
    optimizer = make_optimizer(model, recipe.train.optimizer)
    tokens_BT = torch.randint(
        recipe.model.vocab_size, (1, seq_len + 1), generator=torch.Generator().manual_seed(0)
    ).cuda()
    for _ in range(2):  # AdamW makes its averages in the first
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            with torch.autocast("cuda", torch.bfloat16):
                loss = model.loss(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous())
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated()


class _Memory:
    """Peak bytes since it was made; on a CPU above what was resident then. None where the system does not say."""

    def __init__(self, on_gpu: bool):
        self.on_gpu = on_gpu
        self.before: int | None = 0
        if not on_gpu:
            try:
                Path("/proc/self/clear_refs").write_text(
                    "5"
                )  # Linux: the peak so far, that of the imports, is forgotten
                self.before = self._status("VmRSS")
            except OSError:
                self.before = None

    def peak(self) -> int | None:
        if self.on_gpu:
            import torch

            return torch.cuda.max_memory_allocated()
        return None if self.before is None else self._status("VmHWM") - self.before

    @staticmethod
    def _status(name: str) -> int:
        """Bytes that /proc/self/status gives under a name."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _time(function: Callable[[], None], on_gpu: bool) -> float:
    """Median seconds of a call."""

    def timed() -> float:
        start = time.perf_counter()
        function()
        if on_gpu:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed()
    found: list[float] = []
    while len(found) < MIN_REPEATS or sum(found) < MIN_SECONDS:
        found.append(timed())
    return statistics.median(found)


def main() -> None:
    """Measure the recipe named on the command line and print JSON."""
    from zoo.blocks import load_plugin
    from zoo.recipe import load_recipe

    parser = argparse.ArgumentParser(description="Prefill and training speed and peak memory of one recipe.")
    parser.add_argument("recipe")
    parser.add_argument("--seq-len", type=int, default=None, help="tokens of the row; default max_seq_len")
    parser.add_argument("--peak", action="store_true", help="on CUDA: the peak of training, and the estimate of it")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE")
    arguments = parser.parse_args()
    for module in arguments.plugin:
        load_plugin(module)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    seq_len = arguments.seq_len or recipe.model.max_seq_len
    if not arguments.peak:
        print(json.dumps(measure(recipe, seq_len)))
        return
    from zoo.counting.run_cost import GPUS, step_size

    measured, estimate = training_tensors(recipe, seq_len), step_size(recipe, seq_len, 1, GPUS["h200"]).peak
    print(json.dumps({"measured_bytes": measured, "estimate_bytes": estimate, "ratio": estimate / measured}))


if __name__ == "__main__":
    main()
