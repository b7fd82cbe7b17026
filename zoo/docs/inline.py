"""Attention maps inside a page of the site: a drawing that is a file of its own cannot take the page's colours."""

import posixpath
import re
from collections.abc import Mapping

_IMAGE = re.compile(r'<img alt="([^"]*)" class="zoo-map" src="([^"]+)"(?: style="([^"]*)")? ?/?>')


def with_maps(html: str, page: str, pages: Mapping[str, str]) -> str:
    """The HTML of a page with its images of class `zoo-map` as <svg> elements.

    page: its path below docs/, such as reference/blocks/nsa.md.  pages: path -> text of what is generated.  An image
    that is not generated stays an image.  The text of a drawing is left out of the site's search.
    """

    def shown(found: re.Match) -> str:
        about, file, style = found[1], found[2], found[3] or ""
        svg = pages.get(posixpath.normpath(posixpath.join(posixpath.dirname(page), file)))
        if svg is None:
            return found[0]
        return f'<span class="zoo-map" role="img" aria-label="{about}" style="{style}" data-search-exclude>{svg}</span>'

    return _IMAGE.sub(shown, html)
