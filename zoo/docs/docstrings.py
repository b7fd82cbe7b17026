"""Our docstrings as Markdown, for the Python reference. Named in mkdocs.yml as an extension of griffe.

A docstring is plain prose whose lines may begin with an argument's name and a colon, or with Returns or Raises: such
lines stay lines of their own, and characters that Markdown would read as markup stay what they are.
"""

import re
from inspect import cleandoc
from typing import Any

try:
    from griffe import Extension
except ImportError:  # without the extra `docs`, as_markdown can still be tested
    Extension = object

_OWN_LINE = re.compile(r"(\w+(, \w+)*: |Returns |Raises )")
_MARKUP = str.maketrans({"<": "&lt;", ">": "&gt;", "*": "\\*", "[": "\\[", "]": "\\]"})
_CODE = re.compile(r"(`[^`]*`)")


def as_markdown(docstring: str) -> str:
    """The same text as Markdown; indented paragraphs become code."""
    paragraphs = cleandoc(docstring).split("\n\n")
    return "\n\n".join(p if p.startswith("    ") else _paragraph(p) for p in paragraphs)


def _paragraph(text: str) -> str:
    lines = [_escaped(line.strip()) for line in text.splitlines()]
    joined = lines[:1]
    for line in lines[1:]:
        joined.append(("<br>\n" if _OWN_LINE.match(line) else "\n") + line)
    return "".join(joined)


def _escaped(line: str) -> str:
    pieces = _CODE.split(line)
    return "".join(piece if piece.startswith("`") else piece.translate(_MARKUP) for piece in pieces)


class PlainDocstrings(Extension):
    """Turns every docstring that is read into Markdown."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
