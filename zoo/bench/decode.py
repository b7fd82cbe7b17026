"""`zoo bench decode`: prefill and decoding of recipes with random weights, at several contexts and batch sizes.

bf16 on CUDA, where a step is a replayed CUDA graph; float32 on a CPU. Contexts may be longer than a recipe's
max_seq_len: no weight depends on it. Prefill is timed on as many rows as are read at once (65,536 tokens, or one row);
the other rows of a batch get copies of what those rows cached, since their content changes no time.
"""

import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from itertools import pairwise
from typing import Any

import torch

from zoo.counting.cache_sizes import cache_sizes
from zoo.counting.memory_needed import bytes_needed
from zoo.errors import ZooError
from zoo.inference.decoding import TOKENS_AT_ONCE, WARM_UP, Decoding
from zoo.inference.sampling import Sampler, Sampling
from zoo.memory import free_bytes
from zoo.model import Decoder, build_model
from zoo.model.cache import ModelCache
from zoo.recipe import load_recipe

STEPS = 30  # timed, of which the median counts
ROOM = 64  # tokens of the cache beyond the context: for these steps, and those that warm up
USABLE = 0.95  # share of the free memory that a measurement may be expected to fill


def measure(
    paths: Iterable[str],
    contexts: Sequence[int],
    batches: Sequence[int],
    *,
    overrides: Sequence[str] = (),
    command: str,
    say: Callable[[str], object] = print,
    save: Callable[[dict], object] = lambda report: None,
) -> dict:
    """Measure every recipe at every context and batch.  Returns the report as plain data, for zoo.bench.decode_report.

    say: told what is being measured.  save: given the report after every row.  Raises RecipeError for a bad recipe.
    """
    recipes = [load_recipe(path, overrides) for path in paths]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {"machine": _machine(device), "command": command, "steps": STEPS, "rows": []}
    for recipe in recipes:
        model = build_model(recipe, device=device)
        model = model.eval().to(torch.bfloat16 if device == "cuda" else torch.float32)
        for context in contexts:
            for batch in batches:
                say(f"{recipe.name}: {batch} x {context:,} tokens")
                row = _row(model, context, batch, say)
                say(f"  skipped: {row['skipped']}" if row["skipped"] else f"  {row['decode_ms']:.3f} ms a token")
                report["rows"].append({"recipe": recipe.name, **row})
                save(report)
        del model
        _free()
    return report


def _machine(device: str) -> dict[str, str | int]:
    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "dtype": "bf16" if on_gpu else "fp32",
        "torch": torch.__version__,
        "cuda": (torch.version.cuda or "none") if on_gpu else "none",
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def _row(model: Decoder, context: int, batch: int, say: Callable[[str], object]) -> dict:
    """One measurement; `skipped` says why there is none."""
    element, room = model.embedding.weight.element_size(), context + ROOM
    sizes = cache_sizes(model.config, room, element).values()
    row = {
        "context": context,
        "batch": batch,
        "skipped": None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cache_nominal_bytes": batch * sum(size.nominal_bytes for size in sizes),
    }
    rows_at_once = min(batch, max(1, TOKENS_AT_ONCE // context))
    need = bytes_needed(model.config, room, batch, rows_at_once, element)
    free = free_bytes(model.embedding.weight.device)
    if free is not None and need > USABLE * free:
        return {**row, "skipped": f"needs about {need / 2**30:,.1f} GiB, {free / 2**30:,.1f} GiB are free"}
    try:
        return {**row, **_measured(model, context, batch, rows_at_once, say)}
    except (torch.OutOfMemoryError, ZooError) as error:  # ZooError: a block of another package without a cache
        reason = "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error)
        return {**row, "skipped": reason}
    finally:
        _free()


def _measured(model: Decoder, context: int, batch: int, rows_at_once: int, say: Callable[[str], object]) -> dict:
    on_gpu = model.embedding.weight.is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    cache = model.new_cache(batch, context + ROOM)
    prompts = torch.randint(
        model.config.vocab_size, (rows_at_once, context), generator=torch.Generator().manual_seed(17)
    )
    sampler = Sampler(
        Sampling(temperature=0), [], model.config.vocab_size, model.config.vocab_size, cache.length_B.device
    )
    decoding = Decoding(model, sampler, cache, say)
    prefill_s = _prefill_s(model, cache.rows(0, rows_at_once), prompts)
    _repeat_rows(cache, rows_at_once)
    decode_ms = statistics.median(_step_ms(decoding))
    return {
        "prefill_rows": rows_at_once,
        "prefill_ms": 1e3 * prefill_s,
        "prefill_tokens_per_s": rows_at_once * context / prefill_s,
        "decode_ms": decode_ms,
        "decode_tokens_per_s": 1e3 * batch / decode_ms,
        "cuda_graph": decoding.graph is not None,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "cache_held_bytes": cache.nbytes,
    }


def _prefill_s(model: Decoder, cache: ModelCache, prompts_BT: torch.Tensor) -> float:
    """Seconds from prompts on the device to the logits after them: of the second run, since the first one compiles."""
    tokens_BT = prompts_BT.to(cache.length_B.device)
    for _ in range(2):
        cache.reset()
        _wait(cache.length_B)
        start = time.perf_counter()
        model.next_logits(tokens_BT, cache)
        _wait(cache.length_B)
        seconds = time.perf_counter() - start
    return seconds


def _repeat_rows(cache: ModelCache, n_rows: int) -> None:
    """Make the rows from n_rows on copies of those before."""
    layers: Iterable[Any] = cache.layers  # of attention: no other kind is measured
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    for lo in range(n_rows, cache.batch, n_rows):
        for tensor in (*tensors, cache.length_B):
            tensor[lo : lo + n_rows] = tensor[: min(n_rows, cache.batch - lo)]


def _step_ms(decoding: Decoding) -> list[float]:
    """Milliseconds of each timed step, after those that warm up and, on CUDA, the capture."""
    for _ in range(WARM_UP + 1):
        decoding.step()
    if not decoding.on_gpu:
        return [1e3 * _seconds(decoding.step) for _ in range(STEPS)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(STEPS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        decoding.step()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
