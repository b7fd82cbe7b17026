"""The progress of a training in the output of a notebook cell: a bar, the curve of the loss, the speed. No torch."""

import math
import time
from html import escape
from typing import Any

from zoo.sparkline import sparkline

SECONDS = 0.5  # between two drawings; a browser that is sent more falls behind


class Cell:
    """A part of a cell's output that is drawn anew.  display: with `update(html)`, as IPython's handle of a display."""

    def __init__(self, display: Any, total: int):
        self._display, self._total = display, total
        self._losses: list[tuple[float, float]] = []
        self._latest, self._drawn = "", -math.inf

    @classmethod
    def shown(cls, total: int) -> "Cell | None":
        """A new part of the current cell's output; None where IPython cannot show one."""
        try:
            from IPython.display import HTML, display
        except ImportError:
            return None
        handle = display(HTML(""), display_id=True)
        return None if handle is None else cls(_Html(handle, HTML), total)

    def update(self, batch: int, loss: float, tokens_per_s: float) -> None:
        """Take in a batch; the drawing follows at most twice a second."""
        self._losses.append((batch, loss))
        self._latest = f"batch {batch:,}/{self._total:,}, loss {loss:.4f}, {tokens_per_s:,.0f} tokens/s"
        if time.monotonic() - self._drawn >= SECONDS:
            self._draw()

    def close(self) -> None:
        """Draw the last state."""
        self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        batch = self._losses[-1][0] if self._losses else 0
        bar = f'<progress value="{batch}" max="{self._total}"></progress>'
        self._display.update(f"<div>{bar} {sparkline(self._losses)} {escape(self._latest)}</div>")


class _Html:
    """IPython's handle of a display, which takes objects, as one that takes HTML."""

    def __init__(self, handle: Any, html: Any):
        self._handle, self._html = handle, html

    def update(self, text: str) -> None:
        self._handle.update(self._html(text))
