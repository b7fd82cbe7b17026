"""Text files of a source, beyond their bytes: what cannot be read, the text of HTML, a place to cut one file in two."""

import re
from collections.abc import Iterator
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path

from zoo.data.errors import DataError
from zoo.data.files import COMPRESSED, HTML, bare_suffix
from zoo.data.reading import BLOCK_BYTES, LINE_BYTES, blocks, decoded

UNSEEN = {"script", "style", "template", "noscript"}  # elements whose content no reader sees
UNSEEN_BEGINS = re.compile(r"<(?:(?P<comment>!--)|[!?]|(?P<element>script|style)(?=[\t\n\r\f />]))", re.IGNORECASE)
CLOSES = {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style")}
MOST_OPEN = 16  # tags that may begin before one ends
BLOCKS = {  # elements that begin a line
    *(
        "address",
        "article",
        "aside",
        "blockquote",
        "br",
        "dd",
        "div",
        "dl",
        "dt",
        "figcaption",
        "figure",
        "footer",
        "form",
    ),
    *(
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "li",
        "main",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "table",
        "td",
    ),
    *("th", "title", "tr", "ul"),
}


def is_html(path: Path) -> bool:
    """Whether a file is read as the text of HTML."""
    return bare_suffix(path) in HTML


class _Text(HTMLParser):
    """Collects what a reader of a page sees."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._unseen = self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._unseen += tag in UNSEEN
        self._verbatim += tag == "pre"
        if tag in BLOCKS:
            self.found.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._unseen = max(0, self._unseen - (tag in UNSEEN))
        self._verbatim = max(0, self._verbatim - (tag == "pre"))
        if tag in BLOCKS:
            self.found.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.found.append(data if self._verbatim else re.sub(r"\s+", " ", data))


def html_text(path: Path) -> str:
    """The text of an HTML file, blocks on lines of their own, without scripts and styles.

    Raises DataError for a file of more than 32 MiB, which would be parsed whole, and for one that cannot be parsed.
    """
    parts, size = [], 0
    for text in decoded(path, blocks(path)):
        size += len(text)
        if size > LINE_BYTES:
            raise DataError(f"{path}: longer than {LINE_BYTES >> 20} MiB, and HTML is parsed whole; convert it to text")
        parts.append(text)
    parser = _Text()
    try:
        parser.feed(_without_stray_signs(_without_unseen("".join(parts))))
        parser.close()
    except (ValueError, AssertionError) as error:  # a character reference of thousands of digits, for one
        raise DataError(f"{path}: HTML that cannot be parsed: {error}; convert it to text") from error
    lines = (re.sub("^ (?! )", "", line).rstrip(" ") for line in "".join(parser.found).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


# Python's parser takes hours for 100 kB of `<a <a <a`, and fails at `<![x[`: what it is given is made harmless first.


def _without_unseen(html: str) -> str:
    """HTML without comments, declarations, scripts and styles; one without an end takes the rest along."""
    found: list[str] = []
    at = 0
    while (begin := UNSEEN_BEGINS.search(html, at)) is not None:
        found.append(html[at : begin.start()])
        if html.endswith("<", at, begin.start()):
            found.append(" ")  # so that what is left makes no new declaration
        end = _unseen_end(html, begin)
        if end == 0:
            return "".join(found)
        at = end
    return "".join([*found, html[at:]])


def _unseen_end(html: str, begin: re.Match[str]) -> int:
    """Where what begins there ends; 0 if it does not."""
    if begin["comment"]:
        end = html.find("-->", begin.start() + 2)
        return 0 if end < 0 else end + 3
    end = html.find(">", begin.end()) + 1
    if not begin["element"] or not end or html[end - 2] == "/":  # `<script src="x" />` is an element of its own
        return end
    closes = CLOSES[begin["element"].lower()].search(html, end)
    return html.find(">", closes.end()) + 1 if closes else 0


def _without_stray_signs(html: str) -> str:
    """HTML in which few `<` stand before each `>`; of more, the first ones are text."""
    parts = html.split(">")
    for i, part in enumerate(parts):
        if part.count("<") > MOST_OPEN:
            text, *tags = part.rsplit("<", MOST_OPEN)
            parts[i] = "<".join([text.replace("<", "&lt;"), *tags])
    return ">".join(parts)


def unreadable(path: Path) -> str | None:
    """Why a file cannot be read as text, None if it can; reads it whole, once for each of its states."""
    about = path.stat()
    return _unreadable(path, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@lru_cache(maxsize=1 << 16)
def _unreadable(path: Path, *state: int) -> str | None:
    try:
        for _ in decoded(path, blocks(path)):
            pass
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def sliced(path: Path, start: int, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of a part of a file, of a compressed one in bytes of its content."""
    if path.suffix not in COMPRESSED:
        yield from blocks(path, start, end)
        return
    for at, block in blocks(path):
        low, high = max(start - at, 0), len(block) if end is None else min(len(block), end - at)
        if low < high:
            yield at + low, block[low:high]


def content_bytes(path: Path) -> int:
    """Bytes of a file's content, decompressed."""
    if path.suffix not in COMPRESSED:
        return path.stat().st_size
    return max((at + len(block) for at, block in blocks(path)), default=0)


def cut_place(path: Path, wanted: int) -> int:
    """A place near byte `wanted` to cut a file's content at: after a line end, else between two characters."""
    begin = max(1, wanted - BLOCK_BYTES // 2)
    window = b"".join(block for _, block in sliced(path, begin, wanted + BLOCK_BYTES // 2))
    size, at = content_bytes(path), wanted - begin
    ends = [begin + match.end() for match in re.finditer(b"\n", window) if 0 < begin + match.end() < size]
    if ends:
        return min(ends, key=lambda end: abs(end - wanted))
    while at < len(window) and window[at] & 0xC0 == 0x80:  # inside a character
        at += 1
    return begin + at
