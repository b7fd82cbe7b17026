"""What `zoo bench decode` measured, as Markdown tables and a plot. No torch."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from zoo.bench.report import COLOURS

GIB, MIB = 2**30, 2**20


def as_markdown(report: dict) -> str:
    """The tables of a report, one a context, with device, versions, date and command."""
    machine = report["machine"]
    lines = [
        f"One {machine['device']}, torch {machine['torch']}, CUDA {machine['cuda']}, Python {machine['python']}, "
        f"{machine['date']}. {machine['dtype']}, random weights, greedy; ms per token is the median of "
        f"{report['steps']} steps of the whole batch{_graph(report['rows'])}.",
        "",
        f"    {report['command']}",
        "",
    ]
    for context in dict.fromkeys(row["context"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["context"] == context]
        lines += [f"## {context:,} tokens", "", *_table(rows), ""]
    return "\n".join(lines)


def _graph(rows: list[dict]) -> str:
    graphs = {row["cuda_graph"] for row in rows if not row["skipped"]}
    return {frozenset({True}): ", replayed as a CUDA graph", frozenset({False}): ""}.get(
        frozenset(graphs), ", replayed as a CUDA graph unless marked *" if graphs else ""
    )


def _table(rows: list[dict]) -> Iterator[str]:
    """Ratios are against the first recipe that was measured at this batch."""
    yield (
        "| batch | recipe | prefill ms (rows) | prefill tokens/s | ms per token | tokens/s | ratio "
        "| peak memory | cache allocated | cache nominal |"
    )
    yield "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    mixed = len({row["cuda_graph"] for row in rows if not row["skipped"]}) > 1
    for batch in dict.fromkeys(row["batch"] for row in rows):
        base = None
        for row in (row for row in rows if row["batch"] == batch):
            nominal = f"{row['cache_nominal_bytes'] / MIB:,.1f} MiB"
            if row["skipped"]:
                yield f"| {batch} | {row['recipe']} | skipped: {row['skipped']} | | | | | | | {nominal} |"
                continue
            base = base or row["decode_tokens_per_s"]
            peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / GIB:,.2f} GiB"
            mark = "*" if mixed and not row["cuda_graph"] else ""
            yield (
                f"| {batch} | {row['recipe']} | {row['prefill_ms']:,.1f} ({row['prefill_rows']}) "
                f"| {row['prefill_tokens_per_s']:,.0f} | {row['decode_ms']:,.3f}{mark} "
                f"| {row['decode_tokens_per_s']:,.0f} | {row['decode_tokens_per_s'] / base:.2f}x | {peak} "
                f"| {row['cache_held_bytes'] / MIB:,.1f} MiB | {nominal} |"
            )


def plot(report: dict, path: Path) -> None:
    """Tokens/s and held cache against the context, one column of panels a batch size, axes logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [row for row in report["rows"] if not row["skipped"]]
    batches = list(dict.fromkeys(row["batch"] for row in rows)) or [1]
    size = (4.2 * len(batches), 7)
    figure, axes = pyplot.subplots(2, len(batches), figsize=size, squeeze=False, sharex=True, sharey="row")
    for column, batch in enumerate(batches):
        here = [row for row in rows if row["batch"] == batch]
        _panel(axes[0][column], here, "decode_tokens_per_s", 1)
        _panel(axes[1][column], here, "cache_held_bytes", GIB)
        axes[0][column].set_title(f"batch {batch}")
        axes[1][column].set_xlabel("tokens of context")
    axes[0][0].set_ylabel("decoded tokens/s")
    axes[1][0].set_ylabel("cache allocated, GiB")
    machine = report["machine"]
    figure.suptitle(f"{machine['device']}, {machine['dtype']}, torch {machine['torch']}, {machine['date']}")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _panel(axis, rows: list[dict], value: str, unit: float) -> None:
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    for recipe, colour in zip(recipes, COLOURS * len(recipes), strict=False):
        points = sorted((row["context"], row[value] / unit) for row in rows if row["recipe"] == recipe)
        axis.plot(*zip(*points, strict=True), marker="o", color=colour, label=recipe)
    axis.set(xscale="log", yscale="log")
    _name_contexts(axis, {row["context"] for row in rows})
    axis.grid(alpha=0.3)
    if recipes:
        axis.legend(fontsize=7)


def _name_contexts(axis, contexts: Iterable[int]) -> None:
    ticks = sorted(contexts)
    axis.set_xticks(ticks, [f"{tick // 1024}K" if tick % 1024 == 0 else str(tick) for tick in ticks])
    axis.minorticks_off()
