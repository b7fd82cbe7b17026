"""`zoo bench decode-pair`: the attention of one ansa.local and one ansa.global layer of 340M for one new token.

Against the time in which the memory could hand over all that the two caches hold, plus a fixed time to start: 4.3 TB/s
(a copy on an H200) and 20 us. A choice of blocks is made for every fourth token, so a step is the mean of four, one of
which chooses. Steps are CUDA graphs over several caches in turn, so that none is found in L2.
"""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from zoo.errors import ZooError
from zoo.kernels import cached_attention, cached_choose_blocks, cached_selection_attention, gated_sum

TB_S, START_US = 4.3, 20.0
BEYOND_L2 = 400e6  # bytes that one graph reads at least
RANK, ROPE, HEADS, GROUPS, WINDOW, BLOCK, SELECTED, QUERY_GROUP = 224, 32, 16, 4, 512, 16, 64, 4  # ansa_340m
GRID = {"compression_block": BLOCK, "compression_stride": BLOCK, "selection_block": BLOCK, "query_group": QUERY_GROUP}


@dataclass
class Slots:
    """Latents [B, N, 1, RANK] and rotary keys [B, N, ROPE] of N slots."""

    latent: torch.Tensor
    rope: torch.Tensor

    @classmethod
    def random(cls, batch: int, slots: int) -> "Slots":
        options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
        return cls(torch.randn(batch, slots, 1, RANK, **options), torch.randn(batch, slots, ROPE, **options))


class Pair:
    """One new token a row at `position`, the same in all rows, and the caches of the two layers."""

    def __init__(self, batch: int, context: int):
        self.window, self.tokens = Slots.random(batch, WINDOW), Slots.random(batch, context)
        self.pooled = Slots.random(batch, context // BLOCK)
        options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
        self.q, self.q_rope = (torch.randn(batch, 1, HEADS, width, **options) for width in (RANK, ROPE))
        self.gates = torch.randn(batch, 1, HEADS, 2, **options)
        self.zero = torch.zeros(batch, 1, device="cuda", dtype=torch.int64)
        self.previous = torch.arange(SELECTED, device="cuda", dtype=torch.int32).expand(batch, GROUPS, -1).contiguous()

    @property
    def nbytes(self) -> int:
        slots = (self.window, self.tokens, self.pooled)
        return sum(2 * (x.latent.numel() + x.rope.numel()) for x in slots)

    def step(self, position_B1: torch.Tensor, ends: dict[str, torch.Tensor]) -> torch.Tensor:
        self._attend(self.window, ends["window"])
        far, lse = self._attend(self.pooled, ends["pooled"])
        parts = {"q_rope": self.q_rope, "scale": 96**-0.5}
        chosen = cached_choose_blocks(
            self.q, self.pooled.latent, lse, position_B1, self.previous, k_rope=self.pooled.rope, **GRID, **parts
        )
        tokens = self.tokens.latent, self.tokens.latent, chosen, position_B1
        near = cached_selection_attention(self.q, *tokens, selection_block=BLOCK, k_rope=self.tokens.rope, **parts)
        return gated_sum([far, near], self.gates)

    def _attend(self, slots: Slots, end_B1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rotary = {"q_rope": self.q_rope, "k_rope": slots.rope, "scale": 96**-0.5}
        return cached_attention(self.q, slots.latent, slots.latent, self.zero, end_B1, **rotary)


def measure(contexts: Iterable[int], batches: Iterable[int], say: Callable[[str], None] = print) -> list[dict]:
    """One row for each context and batch.  Raises ZooError without a GPU."""
    if not torch.cuda.is_available():
        raise ZooError("bench decode-pair: needs a CUDA GPU; torch finds none here.")
    batches, rows = list(batches), []
    for context in contexts:
        for batch in batches:
            say(f"{batch} x {context:,} tokens")
            rows.append(_row(context, batch))
            torch.cuda.empty_cache()
    return rows


def _row(context: int, batch: int) -> dict:
    first = Pair(batch, context)
    pairs = [first, *(Pair(batch, context) for _ in range(int(BEYOND_L2 // first.nbytes)))]
    last_group = (context - QUERY_GROUP) // QUERY_GROUP * QUERY_GROUP
    times = [_graph_us(pairs, batch, last_group + i) / len(pairs) for i in range(QUERY_GROUP)]
    least = first.nbytes / TB_S / 1e6 + START_US
    mean = statistics.mean(times)
    return {
        "context": context,
        "batch": batch,
        "cache_bytes": first.nbytes,
        "least_us": least,
        "choosing_us": times[0],
        "mean_us": mean,
        "ratio": mean / least,
        "ratio_choosing": times[0] / least,
    }


def _graph_us(pairs: list[Pair], batch: int, position: int, replays: int = 30) -> float:
    """Median microseconds of one step of every pair."""
    position_B1 = torch.full((batch, 1), position, device="cuda")
    ends = {"window": torch.full_like(position_B1, WINDOW), "pooled": (position_B1 + 1) // BLOCK}

    def steps() -> None:
        for pair in pairs:
            pair.step(position_B1, ends)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        steps()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        steps()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    graph.replay()
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(before.elapsed_time(after) for before, after in pairwise(marks))


def as_markdown(report: dict) -> str:
    """The table, with chip, versions, date and command."""
    machine = report["machine"]
    lines = [
        f"One {machine['gpu']}, torch {machine['torch']}, triton {machine['triton']}, CUDA {machine['cuda']}, "
        f"{machine['date']}. bf16, CUDA graphs, medians. Least: the bytes of both caches at {TB_S} TB/s, "
        f"plus {START_US:.0f} us.",
        "",
        f"    {report['command']}",
        "",
        "| context | batch | cache MB | least us | step us, mean of four | of least | step us, choosing | of least |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['context']:,} | {row['batch']} | {row['cache_bytes'] / 1e6:.1f} | {row['least_us']:.1f} "
            f"| {row['mean_us']:.1f} | {row['ratio']:.2f}x | {row['choosing_us']:.1f} | {row['ratio_choosing']:.2f}x |"
        )
    return "\n".join(lines)
