"""Costs as SVG for a page: cache and FLOPs against context, loss against cache. matplotlib, no torch."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis

from zoo.counting.model_cost import ModelCost, model_cost
from zoo.report.columns import Column
from zoo.report.drawing import count_ticks, draw, line_look, mark_look, size_ticks, token_ticks

FROM = 8  # times less than the first stated length is where the plots begin
WIDE = 8  # times between the smallest and the largest cache, from which on their axis is logarithmic


def cost_plots(columns: Sequence[Column], facts: Sequence[dict[str, Any]], seq_lens: Sequence[int]) -> dict[str, str]:
    """Caption -> SVG: the allocated cache and the forward FLOPs per token at lengths around the stated ones.

    A mark stands at each model's own max_seq_len. Columns whose costs could not be worked out are left out.
    """
    lengths = _lengths(seq_lens)
    costs: dict[int, dict[int, ModelCost]] = {}
    for index, found in enumerate(facts):
        if "parameters" in found:
            with contextlib.suppress(Exception):  # a block of another package can raise anything at another length
                costs[index] = {n: model_cost(columns[index].known_recipe.model, n) for n in lengths}
    own = {index: facts[index]["max_seq_len"] for index in costs}
    drawings: dict[str, tuple[str, str, Callable[[ModelCost], float], Callable[[Axis, bool], None]]] = {
        "Cache of one row against context": ("cache", "cache, bf16", lambda c: c.cache_held_bytes, size_ticks),
        "FLOPs against context": ("ops", "forward FLOPs per token", lambda c: c.flops_per_token, count_ticks),
    }
    return {
        caption: _by_context(name, label, lengths, costs, own, read, ticks)
        for caption, (name, label, read, ticks) in drawings.items()
    }


def _lengths(seq_lens: Sequence[int]) -> list[int]:
    """Powers of two from well below the shortest stated length to the longest one, and the stated ones."""
    first, last = max(1, min(seq_lens) // FROM), max(seq_lens)
    powers = [1 << n for n in range(last.bit_length() + 1) if first <= 1 << n <= last]
    return sorted({*powers, *seq_lens})


def _by_context(name: str, label: str, lengths: list[int], costs, own: dict[int, int], read, ticks) -> str:
    def fill(axes: Axes) -> None:
        axes.set_xscale("log", base=2)
        shown = {index: [read(at[length]) for length in lengths] for index, at in costs.items()}
        if any(value > 0 for values in shown.values() for value in values):
            axes.set_yscale("log", base=2)
        for index, values in shown.items():
            look = {"linewidth": 1.8, **line_look(index), **mark_look(index)}
            marks = [place for place, length in enumerate(lengths) if length == own[index]]
            axes.plot(lengths, values, markevery=marks, **look)[0].set_gid(f"{name}-curve-{index}-cost")
        axes.set_xlim(lengths[0], lengths[-1])
        token_ticks(axes.xaxis)
        ticks(axes.yaxis, axes.get_yscale() == "log")

    return draw(name, "context, tokens", label, fill)


def loss_against_cache(facts: Sequence[dict[str, Any]], seq_lens: Sequence[int], score: str | None) -> str | None:
    """SVG of the final validation of each run against its cache; None with fewer than two runs.

    The cache is that at the longest max_seq_len of the runs if this is one of seq_lens, else at the first of these.
    score: `loss` or `bits_per_byte`, which the runs compare by; None if they do not.  Bars are 95% intervals.
    """
    own = max((found["max_seq_len"] for found in facts if found.get("run") and "cache" in found), default=0)
    seq_len = own if own in seq_lens else seq_lens[0]
    points = [
        (index, found["cache"]["held_bytes"][str(seq_len)], found["run"]["final"])
        for index, found in enumerate(facts)
        if "cache" in found and found.get("run") and found["run"]["final"]
    ]
    if score is None or len(points) < 2 or any(final[score] is None for _, _, final in points):
        return None
    sizes = [size for _, size, _ in points if size > 0]
    log = len(sizes) == len(points) and max(sizes) >= WIDE * min(sizes)

    def fill(axes: Axes) -> None:
        if log:
            axes.set_xscale("log", base=2)
            axes.set_xlim(min(sizes) / 2, max(sizes) * 2)
        for index, size, final in points:
            look = mark_look(index) | {"markersize": 9}
            interval = final.get("intervals", {}).get(score)
            if interval and interval["low"] is not None:
                bar = axes.plot([size, size], [interval["low"], interval["high"]], color=look["color"], linewidth=1.5)
                bar[0].set_gid(f"tradeoff-curve-{index}-interval")
            axes.plot(size, final[score], **look)[0].set_gid(f"tradeoff-curve-{index}-mean")
        if not log:
            axes.set_xlim(0, 1.1 * max(sizes, default=1))
        size_ticks(axes.xaxis, log)

    y = {"loss": "validation loss, nats a token", "bits_per_byte": "bits per byte of validation"}[score]
    return draw("tradeoff", f"cache of one row at {seq_len:,} tokens, bf16", y, fill)
