"""Equations as MathML, made when the site is built: a page needs no script and no network to show them."""

import re
from html import unescape
from xml.etree import ElementTree

from zoo.errors import ZooError

_FENCES = re.compile("<mi>(&#x0(?:2308|2309|230A|230B);)</mi>")  # floor and ceiling, which are no letters
_FUNCTIONS = re.compile("<mi>([a-z]{2,})</mi>")  # ln, tanh: upright, and not run into the letter before them
# What pymdownx.arithmatex (generic) leaves on a page for $...$ and $$...$$.
_SPAN = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def with_mathml(html: str) -> str:
    """The page with its LaTeX replaced by MathML. Raises ZooError for LaTeX that cannot be shown."""
    return _SPAN.sub(lambda found: mathml(unescape(found[3]), display=found[2] == "["), html)


def mathml(latex: str, display: bool) -> str:
    """<math> of a piece of LaTeX; display: on a line of its own. Raises ZooError for LaTeX that cannot be shown."""
    from latex2mathml.converter import convert

    try:
        made = convert(latex.strip(), display="block" if display else "inline")
        ElementTree.fromstring(made)  # commands it does not know come out as text that is not XML, or as a backslash
    except Exception as error:  # the package has no common error
        raise ZooError(f"this LaTeX cannot be shown: {latex.strip()}: {error}") from error
    if "\\" in made:
        raise ZooError(f"this LaTeX cannot be shown: {latex.strip()}: unknown command")
    made = _FENCES.sub(r'<mo stretchy="false">\1</mo>', made)
    made = _FUNCTIONS.sub(r'<mo lspace="0.17em" rspace="0.1em">\1</mo>', made)
    return f'<div class="zoo-math">{made}</div>' if display else made
