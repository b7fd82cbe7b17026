"""Text of others on a terminal or in a log: control characters are shown as escapes, never sent.

File names, recipes, metrics, documents and messages of libraries can hold sequences that colour, move, hide, link
(OSC 8), copy to the clipboard (OSC 52), or turn the order of a line around (bidirectional controls).  Everything that
the zoo prints passes `clean`.
"""

import codecs
import errno
import functools
import io
import os
import re
import shutil
import sys
from typing import Any, TextIO

_UNSAFE = (
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1 (0x9b is CSI, 0x9d OSC)
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # line and paragraph separators, byte-order mark, interlinear annotation
    "\ud800-\udfff"  # bytes of file names that are not UTF-8
    "\U000e0000-\U000e007f]"  # tags: text that no terminal shows
)

_NEAREST = {
    **{"\u00d7": "x", "\u2026": "...", "\u00b7": ".", "\u2192": "->", "\u2264": "<=", "\u2265": ">=", "\u00b5": "u"},
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\u2500\u2501", "-"),
    **dict.fromkeys("\u2018\u2019", "'"),
    **dict.fromkeys("\u201c\u201d", '"'),
    **dict.fromkeys("\u2502\u2503", "|"),
    **dict.fromkeys("\u2588\u2589\u258a\u258b\u25a0", "#"),
}


def clean(text: str) -> str:
    r"""Replace what a terminal would act on by escapes such as `\x1b`; line feeds and tabs stay."""
    if text.replace("\n", "").isprintable():  # nearly all text; what is unsafe is never printable to Python
        return text
    return _unsafe().sub(_escape, text)


@functools.cache
def _unsafe() -> re.Pattern:
    return re.compile(_UNSAFE)  # takes 6 ms


def one_line(text: object) -> str:
    r"""`clean`, and line feeds and tabs as `\n` and `\t`: for a name inside a message."""
    return clean(str(text)).replace("\n", r"\n").replace("\t", r"\t")


def _escape(match: re.Match) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"


def nearest(error: UnicodeError) -> tuple[str, int]:
    """Error handler of encodings: characters that an encoding lacks as near ones (`x` for a times sign), or `?`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_NEAREST.get(one, "?") for one in error.object[error.start : error.end]), error.end


codecs.register_error("zoo.nearest", nearest)


def tolerate_encoding() -> None:
    """Let no line fail because standard output or standard error is ASCII, as with LC_ALL=C or PYTHONIOENCODING=ascii.

    For what other libraries print too.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="zoo.nearest")


def out(text: str = "", end: str = "\n", flush: bool = False) -> None:
    """Print to standard output.  A character that its encoding lacks becomes a near one, or a question mark."""
    _write(sys.stdout, text, end, flush)


def err(text: str = "", end: str = "\n") -> None:
    """Print to standard error; does nothing if its reader has gone, or the terminal was closed."""
    try:
        _write(sys.stderr, text, end, True)
    except OSError as error:
        if not reader_gone(error):
            raise


def reader_gone(error: OSError) -> bool:
    """Whether nobody can read what was to be written: the other end of a pipe, or the terminal (EIO), is closed."""
    return isinstance(error, BrokenPipeError) or error.errno == errno.EIO


def out_styled(text: str, end: str = "\n") -> None:
    """Print what `show.rendered` made: its text is clean already, and its colours are escape sequences of ours."""
    _print(sys.stdout, text, end, False)


def _write(stream: TextIO | None, text: str, end: str, flush: bool) -> None:
    _print(stream, clean(text), end, flush)


def _print(stream: TextIO | None, text: str, end: str, flush: bool) -> None:
    if stream is not None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        # `print` writes the end of a line separately: with PYTHONUNBUFFERED the lines of two processes would mix.
        stream.write((text + end).encode(encoding, "zoo.nearest").decode(encoding))
        if flush:
            stream.flush()


def cleaned(renderable: Any, console: Any) -> Any:
    """What rich draws of `renderable`, with the text of every segment cleaned and without hyperlinks."""
    from rich.segment import Segment, Segments

    lines = console.render(renderable)
    return Segments([Segment(clean(text), style and style.update_link(None)) for text, style, _ in lines])


def called_as() -> str:
    """How the user calls the command line: `zoo` if that is on the PATH, else its path."""
    called = sys.argv[0]
    if os.path.basename(called) != "zoo" or os.sep not in called:
        return "zoo"
    found = shutil.which("zoo")
    if found and os.path.abspath(found) == os.path.abspath(called):
        return "zoo"
    relative = os.path.relpath(called)
    return called if relative.startswith(os.pardir) else relative
