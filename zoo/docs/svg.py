"""Text, cells and axes of the picture that zoo/docs/picture.py draws, as lines of SVG. No torch, no matplotlib."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from zoo.report.colours import Look


@dataclass(frozen=True)
class Ink:
    """Colours of one version of a picture: strong for titles, plain for other text, grid for lines behind curves."""

    strong: str
    plain: str
    grid: str


LIGHT = Ink("#1f2328", "#59636e", "#d1d9e0")
DARK = Ink("#f0f6fc", "#9aa4af", "#3d444d")


def text(x: float, y: float, shown: str, fill: str, size: int = 15, anchor: str = "start", weight: str = "") -> str:
    """One line of text that starts, ends or is centred at x, on the base line y."""
    bold = f' font-weight="{weight}"' if weight else ""
    at = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{bold}'
    return f"<text {at}>{escape(shown)}</text>"


def cell(look: Look, x: float, y: float, size: float) -> list[str]:
    """A square in the colours of the patterns, and the letter."""
    fill = look.colours[0] if len(look.colours) == 1 else f"url(#stripes-{look.letter})"
    square = f'<rect x="{x:g}" y="{y:g}" width="{size:g}" height="{size:g}" rx="3" fill="{fill}"/>'
    return [square, text(x + size / 2, y + size * 0.74, look.letter, "#000", round(size * 0.64), "middle")]


def stripes(look: Look) -> str:
    """Equal stripes as a gradient without transitions, for looks of several colours."""
    if len(look.colours) == 1:
        return ""
    size = 1 / len(look.colours)
    stops = "".join(
        f'<stop offset="{end:.4g}" stop-color="{colour}"/>'
        for n, colour in enumerate(look.colours)
        for end in (n * size, (n + 1) * size)
    )
    return f'<linearGradient id="stripes-{look.letter}">{stops}</linearGradient>'


@dataclass(frozen=True)
class Axes:
    """A rectangle, and where values lie in it.

    x_of: maps a value of the horizontal axis to a share of the width.  low, high: the ends of the vertical axis.
    """

    left: float
    top: float
    width: float
    height: float
    x_of: Callable[[float], float]
    low: float
    high: float

    def x(self, value: float) -> float:
        return self.left + self.width * self.x_of(value)

    def y(self, value: float) -> float:
        return self.top + self.height * (1 - (value - self.low) / (self.high - self.low))

    def frame(self, ink: Ink, y_ticks: dict[float, str], x_ticks: dict[float, str]) -> list[str]:
        """Horizontal lines with their numbers, and the numbers below."""
        parts = []
        for tick, label in y_ticks.items():
            parts.append(f'<path d="M{self.left} {self.y(tick):.1f}h{self.width}" stroke="{ink.grid}"/>')
            parts.append(text(self.left - 8, self.y(tick) + 5, label, ink.plain, 14, "end"))
        below = self.top + self.height + 22
        return parts + [text(self.x(tick), below, label, ink.plain, 14, "middle") for tick, label in x_ticks.items()]

    def curve(self, points: Sequence[tuple[float, float]], colour: str, dots: bool) -> list[str]:
        """A line through (x, y); `dots` marks each point."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="3"/>']
        if dots:
            parts += [f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="4.5" fill="{colour}"/>' for x, y in points]
        return parts

    def band(self, points: Sequence[tuple[float, float, float]], colour: str) -> str:
        """The area between (x, low, high)."""
        edge = [(x, high) for x, _, high in points] + [(x, low) for x, low, _ in reversed(points)]
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in edge)
        return f'<polygon points="{path}" fill="{colour}" fill-opacity="0.28"/>'
