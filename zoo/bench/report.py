"""What `zoo bench kernels` measured, as Markdown tables and a plot. No torch."""

from collections.abc import Iterable
from pathlib import Path

MARKERS = "s^Dv<>P*"  # of peers, by whose they are; ours are round
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#999999", "#332288", "#882255", "#000")


def as_markdown(report: dict) -> str:
    """The tables of a report, with chip, versions, date and command."""
    machine, ceilings = report["machine"], report["ceilings"]
    lines = [
        f"One {machine['gpu']}, torch {machine['torch']}, triton {machine['triton']}, CUDA {machine['cuda']}, "
        f"Python {machine['python']}, {machine['date']}. bf16, one row, random inputs, eager mode, medians.",
        f"Ceilings measured in this run: {ceilings['tflops']:.0f} TFLOP/s dense bf16 product, "
        f"{ceilings['tb_s']:.2f} TB/s copy (read plus written). They are measured once, before everything "
        "else, and vary by several percent. A share can therefore exceed 100%, and shares of two runs cannot be "
        "compared.",
        "",
        f"    {report['command']}",
        "",
    ]
    if any(row.get("graph_ms") for row in report["rows"]) or any("pair_graph_ms" in row for row in report["pair"]):
        lines += ["Graph: forward and backward captured together as one CUDA graph and replayed.", ""]
    for setting in dict.fromkeys(row["setting"] for row in report["rows"]):
        lines += [f"## {setting}", "", *_table([r for r in report["rows"] if r["setting"] == setting], ceilings), ""]
    for row in report.get("failed", []):
        lines += [f"{row['peer']} failed, {row['setting']} at {row['seq_len']:,} tokens: {row['error']}", ""]
    if report["pair"]:
        about = (
            '"On the GPU" is the time within kernels, measured by torch\'s profiler in separate steps, without '
            "the time between kernels."
        )
        lines += ["## A layer pair, forward and backward", "", about, "", *_pair_table(report["pair"]), ""]
    if report["memory"]:
        lines += ["## Peak memory of forward and backward, bytes a token", "", *_memory_table(report["memory"]), ""]
    return "\n".join(lines)


def _table(rows: list[dict], ceilings: dict) -> Iterable[str]:
    graph = any(row.get("graph_ms") for row in rows)
    head = "| tokens | operation | forward ms | backward ms | full / this | forward: arithmetic, bytes | backward |"
    yield head + " graph ms | full / this, graphs |" * graph
    yield "|---:|---|---:|---:|---:|---:|---:|" + "---:|---:|" * graph
    full = {row["seq_len"]: _total(row) for row in rows if row["operation"] == "full"}
    for row in sorted(rows, key=lambda row: row["seq_len"]):
        backward = row["backward_ms"]
        ratio = full[row["seq_len"]] / _total(row) if row["seq_len"] in full and backward else None
        yield (
            f"| {row['seq_len']:,} | {row['operation']} | {row['forward_ms']:.3f} "
            f"| {'' if backward is None else f'{backward:.3f}'} | {'' if ratio is None else f'{ratio:.1f}x'} "
            f"| {_fractions(row, 0, row['forward_ms'], ceilings)} "
            f"| {'' if backward is None else _fractions(row, 1, backward, ceilings)} |"
            + (_graph_cells(row, rows) if graph else "")
        )


def _graph_cells(row: dict, rows: list[dict]) -> str:
    """Forward and backward as one CUDA graph, and how full attention compares."""
    if not row.get("graph_ms"):
        return " | |"
    full = [r for r in rows if r["operation"] == "full" and r["seq_len"] == row["seq_len"] and r.get("graph_ms")]
    ratio = f"{full[0]['graph_ms'] / row['graph_ms']:.1f}x" if full and row["backward_ms"] else ""
    return f" {row['graph_ms']:.3f} | {ratio} |"


def _total(row: dict) -> float:
    return row["forward_ms"] + (row["backward_ms"] or 0.0)


def _fractions(row: dict, index: int, time_ms: float, ceilings: dict) -> str:
    """Counted FLOPs and counted bytes over the time, each as a share of its ceiling."""
    arithmetic = row["flops"][index] / time_ms / 1e9 / ceilings["tflops"]
    moved = row["bytes"][index] / time_ms / 1e9 / ceilings["tb_s"]
    return f"{arithmetic:.0%}, {moved:.0%}" if row["flops"][index] else f"-, {moved:.0%}"


def _pair_table(rows: list[dict]) -> Iterable[str]:
    """With up to three speed-ups: as it runs in eager mode, as CUDA graphs, and by the time that the GPU computes."""
    graph = any("pair_graph_ms" in row for row in rows)
    head = "| tokens | local ms (on the GPU) | global ms (on the GPU) | two full layers ms | speed-up | (on the GPU) |"
    yield head + " graphs: local, global, two full ms | speed-up |" * graph
    yield "|---:|---:|---:|---:|---:|---:|" + "---:|---:|" * graph
    for row in rows:
        device_ms = row["local_device_ms"] + row["global_device_ms"]
        line = (
            f"| {row['seq_len']:,} | {row['local_ms']:.2f} ({row['local_device_ms']:.2f}) | {row['global_ms']:.2f} "
            f"({row['global_device_ms']:.2f}) | {row['two_full_ms']:.2f} | {row['speed_up']:.2f}x "
            f"| {row['two_full_ms'] / device_ms:.2f}x |"
        )
        if "pair_graph_ms" in row:
            line += (
                f" {row['local_graph_ms']:.2f}, {row['global_graph_ms']:.2f}, {row['two_full_graph_ms']:.2f} "
                f"| {row['speed_up_graph']:.2f}x |"
            )
        yield line


def _memory_table(rows: list[dict]) -> Iterable[str]:
    yield "| tokens | ansa.local | ansa.global |"
    yield "|---:|---:|---:|"
    for row in rows:
        yield f"| {row['seq_len']:,} | {row['local_bytes_per_token']:,.0f} | {row['global_bytes_per_token']:,.0f} |"


def plot(report: dict, path: Path) -> None:
    """Time of forward and backward against tokens, one panel a setting, both axes logarithmic.

    An operation has one colour in all panels; a peer has that of what it is the alternative of, dotted, and a marker of
    its own.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = _panels(report)
    peer_of = {row["operation"]: row["peer_of"] for row in report["rows"] if row["peer_of"]}
    alike = {**peer_of, "two full": "full"}
    ours = dict.fromkeys(alike.get(name, name) for series in panels.values() for name in series)
    colours = dict(zip(ours, COLOURS * len(ours), strict=False))
    whose = dict.fromkeys(name.partition(", ")[2] for name in peer_of)
    markers = dict(zip(whose, MARKERS * len(whose), strict=False))
    width = 4.2 * len(panels) + 2
    figure, axes = pyplot.subplots(1, len(panels), figsize=(width, 4), squeeze=False, sharey=True, layout="constrained")
    lines = {}
    for axis, (title, series) in zip(axes[0], panels.items(), strict=True):
        for name, points in series.items():
            style = ":" if name in peer_of else "--" if name in ("full", "two full") else "-"
            x, y = zip(*sorted(points), strict=True)
            marker = markers[name.partition(", ")[2]] if name in peer_of else "o"
            (lines[name],) = axis.plot(x, y, style, marker=marker, color=colours[alike.get(name, name)])
        axis.set(xscale="log", yscale="log", title=title, xlabel="tokens")
        lengths = sorted({x for points in series.values() for x, _ in points})
        axis.set_xticks(lengths, [f"{n // 1024}K" if n % 1024 == 0 else f"{n:,}" for n in lengths])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("forward + backward, ms")
    figure.legend(lines.values(), lines, loc="outside right center", fontsize=8)
    machine = report["machine"]
    figure.suptitle(
        f"{machine['gpu']}, torch {machine['torch']}, triton {machine['triton']}, {machine['date']}", size=10
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _panels(report: dict) -> dict[str, dict[str, list[tuple[int, float]]]]:
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in report["rows"]:
        series = panels.setdefault(row["setting"], {})
        series.setdefault(row["operation"], []).append((row["seq_len"], _total(row)))
    for row in report["pair"]:
        series = panels.setdefault("a layer pair of ansa", {})
        for name in ("local", "global", "pair", "two_full"):
            series.setdefault(name.replace("_", " "), []).append((row["seq_len"], row[f"{name}_ms"]))
    return panels
