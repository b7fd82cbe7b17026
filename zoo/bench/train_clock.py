"""What `zoo bench train` measures of a training: time and memory of its steps, and which kernels take the time."""

import statistics
import time
from collections import defaultdict
from typing import Any

from zoo.bench.machine import machine, peak_bytes
from zoo.bench.train import PROFILED, WARM_UP

# A kernel belongs to the first category that has a piece of its name; elementwise is what is left.
CATEGORIES = {
    "communication": ("nccl",),
    "copies of shards": ("copyfunctor", "chunk_cat", "split_with_sizes_copy"),
    "optimiser": ("multi_tensor", "adam", "lpnorm"),
    "loss": ("cross_entropy",),
    "around attention": ("_add_norm_", "_swiglu_", "_rms_norm_", "_gated_sum_", "_rotate_kernel", "_split_kernel"),
    "attention": ("fmha", "flash", "sdpa", "cudnn", "_dq_kernel", "_dkv_kernel", "_sum_parts", "_sum_chunks",
                  "selection", "_fwd_kernel", "_bwd_kernel", "_rank", "importance", "peak", "pool", "choice", "_mean",
                  "_combine_kernel", "_weights_kernel", "_index_kernel", "_delta_kernel", "radix_sort"),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk", "gemv"),
    "copies": ("memcpy", "memset"),
}  # fmt: skip


class Clock:
    """Called after each batch: notes when, synchronises where a span begins and ends, profiles the last batches."""

    def __init__(self, steps: int, started: float):
        self.steps, self.started = steps, started
        self.total = WARM_UP + steps + (PROFILED + 1)
        self.n = 0
        self.last_part = started
        self.start_s: dict[str, float] = {}  # of the time to the end of the first step, by part; empty if nobody says
        self.times: list[float] = []
        self.first_step_s = self.span_s = 0.0
        self.profiler: Any = None
        self.parts: dict[str, float] | None = None
        self.hidden_ms: float | None = None  # communication beside other kernels
        self.busy_ms = 0.0  # of a step, in which any kernel runs
        self.largest: list | None = None

    def part_of_start(self, name: str) -> None:
        """Enter the seconds since the process was started, or since the last part, as this part of the start."""
        now = time.time()
        self.start_s[name], self.last_part = now - self.last_part, now

    def batch_end(self) -> None:
        self.n += 1
        last = WARM_UP + self.steps
        if self.n in (1, WARM_UP, last):
            _synchronise()
        self.times.append(time.perf_counter())
        if self.n == 1:
            self.first_step_s = time.time() - self.started
            if self.start_s:
                self.part_of_start("first step")
        if self.n == last:
            self.span_s = self.times[-1] - self.times[WARM_UP - 1]
            self.peak = peak_bytes()
            self._profile()
        elif self.n == self.total:
            self._finish_profile()

    def _profile(self) -> None:
        import torch

        if torch.cuda.is_available():
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self.profiler.__enter__()

    def _finish_profile(self) -> None:
        if self.profiler is None:
            return
        _synchronise()
        self.profiler.__exit__(None, None, None)
        events = [e for e in self.profiler.events() if str(e.device_type).endswith("CUDA")]
        kernels = [e for e in events if not getattr(e, "is_user_annotation", False)]
        spans = [(e.name, e.time_range.start / 1e3, e.time_range.end / 1e3) for e in kernels]
        times, hidden_ms, busy_ms = without_hidden(spans)
        self.hidden_ms, self.busy_ms = hidden_ms / (PROFILED + 1), busy_ms / (PROFILED + 1)
        self.parts = {name: time_ms / (PROFILED + 1) for name, time_ms in breakdown(times).items()}
        self.largest = largest([(name, (end - start) / (PROFILED + 1)) for name, start, end in spans])

    def row(self, name: str, tokens: int, seq_len: int, micro_batch, mfu_per_token: float | None) -> dict:
        """What was measured; tokens: of a batch."""
        step_s = self.span_s / self.steps
        spans = [
            b - a for a, b in zip(self.times[WARM_UP - 1 :], self.times[WARM_UP : WARM_UP + self.steps], strict=False)
        ]
        parts = self.parts and {**self.parts, "host": max(0.0, step_s * 1e3 - self.busy_ms)}
        return {
            "name": name,
            "machine": machine(),
            "seq_len": seq_len,
            "micro_batch": micro_batch,
            "tokens_per_batch": tokens,
            "graph": "no",
            "step_ms": step_s * 1e3,
            "median_ms": statistics.median(spans) * 1e3,
            "tokens_per_s": tokens / step_s,
            "mfu": None if mfu_per_token is None else tokens / step_s * mfu_per_token,
            "peak_bytes": self.peak,
            "first_step_s": self.first_step_s,
            "start_s": self.start_s or None,
            "parts_ms": parts,
            "hidden_ms": self.hidden_ms,
            "largest": self.largest,
        }


def without_hidden(spans: list[tuple[str, float, float]]) -> tuple[list[tuple[str, float]], float, float]:
    """(name, milliseconds) of each kernel, communication counted only where nothing else runs; the rest of it, hidden;
    and how long any kernel runs.

    spans: (name, start, end) in milliseconds.
    """
    is_exchange = lambda name: any(piece in name.lower() for piece in CATEGORIES["communication"])  # noqa: E731
    exchanges = [(start, end) for name, start, end in spans if is_exchange(name)]
    others = [(name, start, end) for name, start, end in spans if not is_exchange(name)]
    times = [(name, end - start) for name, start, end in others]
    computing = _length([(start, end) for _, start, end in others])
    if not exchanges:
        return times, 0.0, computing
    exposed = _length([*((start, end) for _, start, end in others), *exchanges]) - computing
    return [*times, ("nccl", exposed)], _length(exchanges) - exposed, computing + exposed


def _length(intervals: list[tuple[float, float]]) -> float:
    """Of the union of intervals."""
    total, reached = 0.0, -float("inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def breakdown(spans: list[tuple[str, float]]) -> dict[str, float]:
    """Milliseconds by category.  spans: (name, milliseconds) of kernels and copies."""
    found: dict[str, float] = defaultdict(float)
    for name, time_ms in spans:
        lower = name.lower()
        category = next(
            (c for c, pieces in CATEGORIES.items() if any(piece in lower for piece in pieces)), "elementwise"
        )
        found[category] += time_ms
    return {name: found[name] for name in [*CATEGORIES, "elementwise"] if name in found}


def largest(spans: list[tuple[str, float]], n: int = 40) -> list[list]:
    """The n kernels that take longest, as [name, milliseconds, how often] by time."""
    found: dict[str, list] = defaultdict(lambda: [0.0, 0])
    for name, time_ms in spans:
        found[name[:120]][0] += time_ms
        found[name[:120]][1] += 1
    return [[name, *numbers] for name, numbers in sorted(found.items(), key=lambda item: -item[1][0])[:n]]


def _synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
