"""A small curve without axes, as SVG, for notebooks. No torch, no matplotlib."""

import math
from collections.abc import Sequence

WIDTH, HEIGHT, MOST_POINTS = 160, 36, 200


def sparkline(points: Sequence[tuple[float, float]]) -> str:
    """The curve through (x, y); points that are no finite numbers are left out; "" for fewer than two.

    y is drawn on a logarithmic axis if all values are positive, as losses are.
    """
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(finite) < 2:
        return ""
    thinned = finite[:: max(1, len(finite) // MOST_POINTS)]
    if thinned[-1] != finite[-1]:
        thinned.append(finite[-1])
    if all(y > 0 for _, y in thinned):
        thinned = [(x, math.log(y)) for x, y in thinned]
    xs, ys = zip(*thinned, strict=True)
    places = " ".join(f"{_scaled(x, xs) * WIDTH:.1f},{(1 - _scaled(y, ys)) * HEIGHT:.1f}" for x, y in thinned)
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="-1 -1 {WIDTH + 2} {HEIGHT + 2}" role="img" '
        f'aria-label="curve from {finite[0][1]:.4g} to {finite[-1][1]:.4g}">'
        f'<polyline points="{places}" fill="none" stroke="#0072B2" stroke-width="1.5"/></svg>'
    )


def _scaled(value: float, values: Sequence[float]) -> float:
    low, high = min(values), max(values)
    return 0.5 if high == low else (value - low) / (high - low)
