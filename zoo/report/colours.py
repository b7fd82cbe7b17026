"""One colour for each pattern and one for each run, in every strip, map, plot and page. No torch, no matplotlib."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.blocks.registry import PATTERNS

# Okabe and Ito's colours, told apart by colour-blind readers; the letter on each cell serves everyone else.
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00", "#BBBBBB")
OTHER = COLOURS[7]  # layers that are not made of patterns
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# Of runs and architectures, whose lines lie on white and on black pages: 3.7 to 5.1 times as bright or dark as both.
RUN_COLOURS = (
    "#2477d4", "#d9600a", "#128a64", "#c2408f", "#7d67d8", "#94750a", "#d93f45", "#0e8ca8", "#77808a", "#5f8f17",
)  # fmt: skip
# matplotlib's marker of each run in turn -> its shape in a legend; ten, as many as a comparison has columns.
MARKERS = {
    "o": "M14 4a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "s": "M14.5 .5h7v7h-7z",
    "^": "M18 0l4 8h-8z",
    "D": "M18 0l4 4l-4 4l-4 -4z",
    "v": "M18 8l4 -8h-8z",
    "<": "M14 4l8 -4v8z",
    ">": "M22 4l-8 -4v8z",
    "P": "M16.5 0h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
    "h": "M18 0l3.5 2v4l-3.5 2l-3.5 -2v-4z",
    "x": "M15 0l3 3l3 -3l1 1l-3 3l3 3l-1 1l-3 -3l-3 3l-1 -1l3 -3l-3 -3z",
}
DASHES = ("-", "--", ":", "-.")  # with the marker, what tells runs apart in grey


@dataclass(frozen=True)
class Look:
    """How a kind of attention is shown: a letter that is its own in a picture, and the colours of its patterns."""

    letter: str
    colours: tuple[str, ...]

    @property
    def background(self) -> str:
        """The CSS background of a cell: one colour, or equal stripes."""
        if len(self.colours) == 1:
            return self.colours[0]
        size = 100 / len(self.colours)
        stripes = (f"{c} {n * size:.4g}% {(n + 1) * size:.4g}%" for n, c in enumerate(self.colours))
        return f"linear-gradient(90deg,{','.join(stripes)})"

    def cell(self) -> list[tuple[str, str]]:
        """Three characters for a terminal, each with a style: of one pattern, two or three."""
        if len(self.colours) == 1:
            return [(f" {self.letter} ", f"black on {self.colours[0]}")]
        shown = self.colours if len(self.colours) > 2 else (self.colours[0], *self.colours)
        return [(text, f"black on {colour}") for text, colour in zip(f" {self.letter} ", shown, strict=False)]


def of_patterns(kinds: Sequence[str]) -> tuple[str, ...]:
    """The colours of patterns by their kinds, each once; grey for none, and for a kind that is not registered."""
    return tuple(dict.fromkeys(map(_of_pattern, kinds))) or (OTHER,)


def _of_pattern(kind: str) -> str:
    try:
        return COLOURS[PATTERNS.config_class(kind).colour % len(COLOURS)]
    except ValueError:
        return OTHER


def patterns_of(mixer: Any) -> list[str]:
    """The kinds of a resolved mixer's patterns; [] of one that is not made of patterns."""
    return [] if mixer.attention is None else [pattern.kind for pattern in mixer.attention.patterns]


def looks(layers: Iterable[dict[str, Any]]) -> dict[str, Look]:
    """Attention -> look, in the order of first use; layers are those of `zoo show --json`.

    Not the block's name, which means something else in every recipe, and not its kind: two windows may differ. Then
    they have one colour and two letters.
    """
    patterns: dict[str, Sequence[str]] = {}
    for layer in layers:
        patterns.setdefault(layer["attention"], layer["patterns"])
    return {
        attention: Look(LETTERS[number % len(LETTERS)], of_patterns(kinds))
        for number, (attention, kinds) in enumerate(patterns.items())
    }
