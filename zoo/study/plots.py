"""The drawings of a study's page as SVG: curves, the grid, the trade-offs, the scores. matplotlib, no torch."""

from collections.abc import Callable, Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis

from zoo.report.colours import DASHES, MARKERS, RUN_COLOURS
from zoo.report.drawing import count_ticks, draw, size_ticks
from zoo.study.findings import mean_curve
from zoo.study.speeds import ALONE
from zoo.study.tables import tokens_per_s

MOST_SCORES = 24
BEGINNING = 0.05  # of a training, whose losses are far above all others
LOSS = "validation loss, nats a token"
UNITS = {"loss": LOSS, "bits_per_byte": "bits per byte"}


def drawings(found: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Heading -> (caption, SVG) of each drawing under it; headings without a drawing are left out."""
    made = {
        "Final loss": list(_final(found)),
        "Loss while training": list(_curves(found)),
        "Choosing from the grid": list(_grid(found)),
        "Quality against cost": list(_trade_offs(found)),
        "Scores": list(_scores(found)),
    }
    return {heading: each for heading, each in made.items() if each}


def _look(index: int) -> dict[str, Any]:
    return {"color": RUN_COLOURS[index % len(RUN_COLOURS)], "marker": [*MARKERS][index % len(MARKERS)], "markersize": 5}


def _final(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The final loss of each architecture, mean and interval, from which the verdicts follow."""
    results, metric = found["results"], found["results"]["metric"]
    architectures = results["architectures"]
    means = [each[f"mean_{metric}"] for each in architectures]
    if any(means):
        label = f"{UNITS[metric]}; lower is better"
        mark = means[0]["value"] if means[0] else None
        dotted = f"; dotted: {architectures[0]['name']}" if mark is not None else ""
        height = 0.9 + 0.35 * len(means)
        yield (
            f"Mean and 95% interval{dotted}",
            draw("final", label, "", lambda axes: _rows(axes, "final", architectures, means, mark), height),
        )


def _curves(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    architectures = found["results"]["architectures"]
    by_tokens = [mean_curve(each["runs"], "validation") for each in architectures]
    by_flops = [
        [[point[0] * each["flops_per_token"], *point[1:]] for point in curve]
        for each, curve in zip(architectures, by_tokens, strict=True)
    ]
    by_time = [found["measured"]["architectures"][each["name"]]["time_curve"] for each in architectures]
    for name, label, caption, curves in (
        ("tokens", "tokens", "tokens", by_tokens),
        ("flops", "training FLOPs", "training FLOPs", by_flops),
        ("time", "training time, s", _time_caption(found, by_time), by_time),
    ):
        if any(curves):

            def fill(axes: Axes, name=name, curves=curves) -> None:
                for index, curve in enumerate(curves):
                    if curve:
                        _banded(axes, f"{name}-curve-{index}", index, curve)
                _leave_out_the_beginning(axes, curves)
                if name != "time":
                    count_ticks(axes.xaxis)

            cut = "; the first losses lie above" if any(_above(curves)) else ""
            yield f"Against {caption}{cut}", draw(name, label, LOSS, fill)


def _time_caption(found: dict[str, Any], curves: list[list]) -> str:
    """What the time of the curves is, and whose curve is left out because its time cannot be compared."""
    alone = found["measured"]["comparison"]["basis"] == ALONE
    shown = zip(found["results"]["architectures"], curves, strict=True)
    lacking = [each["name"] for each, curve in shown if not curve]
    text = "training time at the speed measured alone" if alone else "training time of the runs"
    return f"{text}{_not_comparable(lacking)}"


def _not_comparable(names: list[str]) -> str:
    return f"; not comparable: {', '.join(names)}" if names else ""


def _above(curves: list[list[list[float]]]) -> Iterator[list[float]]:
    """The points of the first BEGINNING of the curves that lie above all later ones: they would flatten the rest."""
    last = max(point[0] for curve in curves for point in curve)
    later = [point[3] for curve in curves for point in curve if point[0] >= BEGINNING * last]
    yield from (p for curve in curves for p in curve if p[0] < BEGINNING * last and p[1] > max(later))


def _leave_out_the_beginning(axes: Axes, curves: list[list[list[float]]]) -> None:
    above = list(_above(curves))
    kept = [point for curve in curves for point in curve if point not in above]
    if above:
        low, high = min(point[2] for point in kept), max(point[3] for point in kept)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _banded(axes: Axes, gid: str, index: int, curve: list[list[float]]) -> None:
    x, mean, low, high = zip(*curve, strict=True)
    axes.fill_between(x, low, high, color=RUN_COLOURS[index % len(RUN_COLOURS)], alpha=0.25, linewidth=0).set_gid(
        f"{gid}-band"
    )
    axes.plot(x, mean, linestyle=DASHES[index % len(DASHES)], linewidth=2, **_look(index))[0].set_gid(f"{gid}-mean")


def _grid(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Loss against each key of the grid that has numbers; of the other keys the best value for each."""
    results = found["results"]
    for number, (key, values) in enumerate(results["grid"].items()):
        if len(values) < 2 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            continue

        def fill(axes: Axes, number=number, key=key, values=values) -> None:
            for index, each in enumerate(results["architectures"]):
                best = _best_by(each, key)
                if not best:
                    continue
                gid = f"grid{number}-curve-{index}"
                look = _look(index) | {"linestyle": DASHES[index % len(DASHES)]}
                axes.plot(*zip(*best, strict=True), **look)[0].set_gid(f"{gid}-line")
                chosen = [point for point in best if point[0] == each["chosen_values"].get(key)]
                if chosen:
                    ring: dict[str, Any] = {
                        "color": RUN_COLOURS[index % len(RUN_COLOURS)],
                        "marker": "o",
                        "markersize": 13,
                        "fillstyle": "none",
                    }
                    axes.plot(*chosen[0], **ring)[0].set_gid(f"{gid}-chosen")
            if min(values) > 0:
                axes.set_xscale("log")
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.minorticks_off()

        if any(_best_by(each, key) for each in results["architectures"]):
            yield f"Against {key}; a ring marks the choice", draw(f"grid{number}", key, LOSS, fill)


def _best_by(each: dict[str, Any], key: str) -> list[tuple[float, float]]:
    """(value of the key, lowest loss there), ascending."""
    best: dict[float, float] = {}
    for label, loss in each["losses_of_choice"].items():
        if loss is not None:
            value = each["points"][label][key]
            best[value] = min(loss, best.get(value, loss))
    return sorted(best.items())


def _trade_offs(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    results, metric = found["results"], found["results"]["metric"]
    y = UNITS[metric]
    usable = [(i, each, each[f"mean_{metric}"]) for i, each in enumerate(results["architectures"])]
    usable = [(i, each, mean) for i, each, mean in usable if mean is not None]
    sizes = [(i, each["cache_held_bytes"], mean) for i, each, mean in usable]
    if sizes:
        lengths = sorted({each["cache_length"] for _, each, _ in usable})
        caption = f"Against the KV cache of one row of {' or '.join(f'{n:,}' for n in lengths)} tokens, bf16"
        yield caption, draw("cache", "KV cache", y, lambda axes: _points(axes, "cache", sizes, size_ticks))
    alone, decoding, lacking = [], [], []
    comparison = found["measured"]["comparison"]
    for i, each, mean in usable:
        measured = found["measured"]["architectures"][each["name"]]
        rows = [row for row in measured["decoding"] if not row.get("skipped")]
        decoding += [(i, tokens_per_s(rows[0]), mean)] if rows else []
        if each["name"] in comparison["not_comparable"]:
            lacking.append(each["name"])
        elif comparison["basis"] == ALONE:
            alone.append((i, measured["alone"]["tokens_per_s"], mean))
    if len(alone) == 1 < len(usable):  # nothing to compare it with
        alone = []
    for name, caption, speeds in (
        ("training", f"training speed, measured alone{_not_comparable(lacking)}", alone),
        ("decoding", "decoding speed", decoding),
    ):
        if speeds:

            def fill(axes: Axes, name=name, speeds=speeds) -> None:
                _points(axes, name, speeds, count_ticks)

            yield f"Against {caption}", draw(name, f"{name}, tokens/s", y, fill)


def _points(axes: Axes, name: str, points: list[tuple[int, float, dict]], ticks: Callable[[Axis], None]) -> None:
    """Means with their intervals."""
    for index, x, mean in points:
        if mean["low"] is not None:
            line = axes.plot(
                [x, x], [mean["low"], mean["high"]], color=RUN_COLOURS[index % len(RUN_COLOURS)], linewidth=1.5
            )
            line[0].set_gid(f"{name}-curve-{index}-interval")
        axes.plot(x, mean["value"], **(_look(index) | {"markersize": 9}))[0].set_gid(f"{name}-curve-{index}-mean")
    axes.set_xlim(left=0)
    ticks(axes.xaxis)


def _scores(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    architectures = found["results"]["architectures"]
    first = architectures[0]["scores"]
    keys = [(task, metric) for task, metrics in first.items() for metric in metrics]
    keys.sort(key=lambda key: not first[key[0]][key[1]]["primary"])  # those on which something is decided first
    for number, (task, metric) in enumerate(keys[:MOST_SCORES]):
        numbers = [each["scores"][task][metric] for each in architectures]
        if not any(each["mean"] for each in numbers):
            continue
        unit = 100 if numbers[0]["share"] else 1

        def fill(axes: Axes, number=number, numbers=numbers, unit=unit) -> None:
            means, chance = [each["mean"] for each in numbers], numbers[0]["chance"]
            _rows(axes, f"score{number}", architectures, means, None if chance is None else unit * chance, unit)
            low, high = axes.get_xlim()
            if unit == 100 and high - low < 1:  # all at 0%, say: the axis must not show hundredths of a per cent
                axes.set_xlim((low + high) / 2 - 0.5, (low + high) / 2 + 0.5)

        x = f"{metric.replace('_', ' ')}{', %' * (unit == 100)}; {numbers[0]['better'] or 'neither'} is better"
        dotted = "; dotted: chance" if numbers[0]["chance"] is not None else ""
        further = "" if numbers[0]["primary"] else "; a further score, not corrected, not decided"
        yield f"{task}{dotted}{further}", draw(f"score{number}", x, "", fill, height=0.9 + 0.35 * len(numbers))


def _rows(
    axes: Axes,
    prefix: str,
    architectures: list[dict[str, Any]],
    means: list[dict | None],
    mark: float | None,
    unit: int = 1,
) -> None:
    """A labelled row for each architecture.  mark: position of a dotted line.  unit: as in `_score`."""
    if mark is not None:
        axes.axvline(mark, color="#808080", linestyle=(0, (1, 1)), linewidth=2.5)
    for index, mean in enumerate(means):
        if mean:
            _score(axes, f"{prefix}-curve-{index}", index, mean, unit)
    axes.set_yticks(range(len(means)), [each["name"] for each in architectures])
    axes.set_ylim(len(means) - 0.5, -0.5)


def _score(axes: Axes, gid: str, index: int, mean: dict, unit: int) -> None:
    if mean["low"] is not None:
        line = axes.plot(
            [unit * mean["low"], unit * mean["high"]], [index, index], color=RUN_COLOURS[index % len(RUN_COLOURS)]
        )
        line[0].set_gid(f"{gid}-interval")
    axes.plot(unit * mean["value"], index, **(_look(index) | {"markersize": 8}))[0].set_gid(f"{gid}-mean")
