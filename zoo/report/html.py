"""The parts that all pages share: the document with its style and script, escaped text, legends. No torch."""

import html
from importlib import resources

from zoo.report.colours import MARKERS, RUN_COLOURS
from zoo.terminal import clean

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_DASHES = ("", "7 3", "2 3", "7 3 2 3")  # as colours.DASHES


def document(title: str, body: str, style: str = "") -> str:
    """A page of HTML with the style and the script of all pages.  style: rules after the common ones."""
    files = resources.files("zoo.report")
    common, script = (files.joinpath(f"page.{end}").read_text(encoding="utf-8") for end in ("css", "js"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{common}{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Text of recipes, names and messages as HTML, in elements and in quoted attributes."""
    return html.escape(clean(text))


def notes(lines: list[str], heading: str) -> str:
    """A box with a heading and a list; nothing without lines."""
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class=notes role="note"><b>{heading}</b><ul>{items}</ul></div>'


def details(title: str, text: str) -> str:
    """Long text that opens with a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def scrolled(table: str) -> str:
    """A table that scrolls sideways where it is wider than the window; then page.js shows the hint."""
    hint = "<p class='hint dim' hidden>The table goes on to the right: scroll it sideways.</p>"
    return f"{hint}<div class=scroll tabindex=0 role=region aria-label='Table'>{table}</div>"


def legend(names: dict[int, str]) -> str:
    """A button for each run, by its number, that hides it in every drawing of the page."""
    buttons = "".join(
        f'<button data-curve="curve-{n}" aria-pressed="true">{sample(n)}{escape(name)}</button>'
        for n, name in names.items()
    )
    return f"<p class='legend toggles'>{buttons}</p>"


def sample(number: int) -> str:
    """The line and the mark of a run, for its entry in a legend."""
    dash, colour = _DASHES[number % len(_DASHES)], RUN_COLOURS[number % len(RUN_COLOURS)]
    stroke = f'stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"'
    mark = f'<path d="{[*MARKERS.values()][number % len(MARKERS)]}" fill="{colour}"/>'
    return f'<svg class="sample" viewBox="0 0 36 8" aria-hidden="true"><path d="M0 4H36" {stroke}/>{mark}</svg>'
