"""The strip of layers for a terminal, with repeats folded: `0-23 A B A B ...` for a schedule of 24 layers. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from zoo.report.colours import Look
from zoo.tables import Text

SHORT = 8  # layers; so few are shown one by one
FEWEST_HIDDEN = 3
LONGEST_UNIT = 64  # layers of a pattern that is looked for
MOST_CELLS = 96  # of one strip; a schedule without repeats is cut there


@dataclass(frozen=True)
class Stretch:
    """Layers `first` to `last`, which are the letters of `unit` again and again; once where nothing repeats."""

    first: int
    last: int
    unit: tuple[int, ...]

    @property
    def repeats(self) -> bool:
        """Whether two repeats are shown for all of them, which leaves out at least FEWEST_HIDDEN layers."""
        return self.last - self.first + 1 >= 2 * len(self.unit) + FEWEST_HIDDEN


def stretches(numbers: Sequence[int]) -> list[Stretch]:
    """Cut a schedule, one number for each layer, into the longest stretches of whole repeats, from the first layer on.

    Layers between two such stretches form a stretch of their own.
    """
    found: list[Stretch] = []
    at = plain = 0  # the layers from `plain` on are in no stretch yet
    while at < len(numbers):
        length, period = _best_repeat(numbers, at)
        if not period:
            at += 1
            continue
        if plain < at:
            found.append(Stretch(plain, at - 1, tuple(numbers[plain:at])))
        found.append(Stretch(at, at + length - 1, tuple(numbers[at : at + period])))
        plain = at = at + length
    return [*found, Stretch(plain, at - 1, tuple(numbers[plain:]))] if plain < at else found


def _best_repeat(numbers: Sequence[int], start: int) -> tuple[int, int]:
    """(layers, period) of the longest stretch of at least three whole repeats from `start`; (0, 0) if there is none."""
    best = (0, 0)
    for period in range(1, min(LONGEST_UNIT, (len(numbers) - start) // 3) + 1):
        end = start + period
        while end < len(numbers) and numbers[end] == numbers[end - period]:
            end += 1
        length = (end - start) // period * period
        if length >= 3 * period and length > best[0]:
            best = (length, period)
    return best


def strip(layers: Sequence[Look], title: str = "", coloured: bool = False) -> Text:
    """One line: the letters of a schedule after `title`, each layer where there are few, else each stretch once.

    layers: how each layer is shown, as `colours.looks` says.  coloured: as cells in colours instead of plain letters.
    """
    line = Text(title)
    if len(layers) <= SHORT:
        return _cells(line, layers, coloured)
    order = {look: number for number, look in enumerate(dict.fromkeys(layers))}
    known, numbers, shown = list(order), [order[look] for look in layers], 0
    for stretch in stretches(numbers):
        if shown >= MOST_CELLS:
            return line.append(" ...")
        line.append("" if shown == 0 else "  ").append(_range(stretch), "dim").append(" ")
        cells = (stretch.unit * 2 if stretch.repeats else numbers[stretch.first : stretch.last + 1])[:MOST_CELLS]
        _cells(line, [known[number] for number in cells], coloured)
        line.append(" ..." if stretch.repeats or len(cells) < stretch.last - stretch.first + 1 else "")
        shown += len(cells)
    return line


def _range(stretch: Stretch) -> str:
    return str(stretch.first) if stretch.first == stretch.last else f"{stretch.first}-{stretch.last}"


def _cells(line: Text, layers: Sequence[Look], coloured: bool) -> Text:
    if not coloured:
        return line.append(" ".join(look.letter for look in layers))
    return line.append_tokens(part for look in layers for part in look.cell())
