"""Reading local files block by block: decompressed, decoded and cut as they are read, so that memory is bounded.

Blocks hold BLOCK_BYTES at most, whatever the size of the file.  Broken input raises DataError with file and place.
"""

import codecs
import io
import lzma
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from zoo.data.errors import DataError
from zoo.data.files import COMPRESSED
from zoo.files import check_file, open_file

BLOCK_BYTES = 1 << 18
LINE_BYTES = 1 << 25  # of one line of JSON, which is parsed whole
CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
UTF8_MARK = codecs.BOM_UTF8
OTHER_MARKS = {  # longer ones first: the mark of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file, decompressed if its suffix says so; what fails while it is read is a DataError."""
    try:
        with _open(path) as file:
            yield file
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:  # pyarrow's errors are OSError or ValueError
        raise DataError(f"{path}: cannot be read: {error}") from error


def _open(path: Path) -> BinaryIO:
    if path.suffix not in COMPRESSED:
        return open_file(path, DataError)
    check_file(path, DataError)
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path))
    import pyarrow

    source = pyarrow.input_stream(str(path), compression=CODECS[path.suffix])
    return io.BufferedReader(source, BLOCK_BYTES)


def blocks(path: Path, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of start..end of a file, None: to its end.  A UTF-8 byte-order mark at 0 is left out."""
    with reading(path) as file:
        at = start
        if start:
            file.seek(start)
        while end is None or at < end:
            block = file.read(BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - at))
            if not block:
                return
            mark = mark_length(path, block) if at == 0 else 0
            yield at + mark, block[mark:]
            at += len(block)


def mark_length(path: Path, head: bytes) -> int:
    """Bytes of the UTF-8 byte-order mark at the beginning of a file.  Raises DataError for UTF-16 and UTF-32."""
    if head.startswith(UTF8_MARK):
        return len(UTF8_MARK)
    for mark, name in OTHER_MARKS.items():
        if head.startswith(mark):
            raise DataError(f"{path}: {name} text (its byte-order mark is {mark.hex(' ')}); convert it to UTF-8")
    beginning = head[:256]
    if beginning.count(0) * 4 > len(beginning):
        raise DataError(f"{path}: not text: many zero bytes at its beginning (UTF-16 without a byte-order mark?)")
    return 0


def begins_with_mark(path: Path) -> bool:
    """Whether a file begins with the byte-order mark of UTF-8."""
    with reading(path) as file:
        return file.read(len(UTF8_MARK)) == UTF8_MARK


def decoded(path: Path, data: Iterator[tuple[int, bytes]]) -> Iterator[str]:
    """Decode the blocks of a document in UTF-8."""
    held, at = b"", 0
    for offset, block in data:
        text, held = decode(path, held + block, offset - len(held), last=False)
        at = offset + len(block) - len(held)
        yield text
    yield decode(path, held, at, last=True)[0]


def decode(path: Path, data: bytes, offset: int, *, last: bool) -> tuple[str, bytes]:
    """Return the text of whole characters, and the bytes that are left: a character whose end is in the next block."""
    try:
        text, used = codecs.utf_8_decode(data, "strict", last)
    except UnicodeDecodeError as error:
        raise not_utf8(path, offset + error.start, data[error.start :]) from error
    return text, data[used:]


def not_utf8(path: Path, offset: int, data: bytes) -> DataError:
    """Return the error for bytes at `offset` that are not UTF-8; `data` begins with them."""
    place = f"line {line_number(path, offset)}: byte {offset}"
    return DataError(f"{path}: {place} is not UTF-8 text (0x{data[:1].hex()}); convert the file, or leave it out")


def line_number(path: Path, offset: int) -> int:
    """The line, counted from 1, in which byte `offset` of a file lies."""
    n = 1
    with reading(path) as file:
        while offset > 0 and (block := file.read(min(BLOCK_BYTES, offset))):
            n += block.count(b"\n")
            offset -= len(block)
    return n


def lines(path: Path, start: int, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) for the lines of a range of a file, each line with its end.

    Raises DataError for a line of more than LINE_BYTES, which would be parsed whole.
    """
    with reading(path) as file:
        offset = start
        if start:
            file.seek(start)
        while end is None or offset < end:
            line = file.readline(LINE_BYTES + 1)
            if not line:
                return
            if len(line) > LINE_BYTES:
                most = f"the most is {LINE_BYTES >> 20} MiB, because a line is parsed whole"
                raise DataError(
                    f"{path}: line {line_number(path, offset)} is longer than {most}; "
                    "cut its document into several lines, or give it as `kind: text`"
                )
            mark = mark_length(path, line) if offset == 0 else 0
            yield offset + mark, line[mark:]
            offset += len(line)


def separator_pattern(separator: str) -> re.Pattern[bytes]:
    """What separates documents, in bytes: a line end of `separator` stands for LF and for CRLF."""
    parts = re.split(rb"(?<!\r)\n", separator.encode())
    return re.compile(rb"\r?\n".join(re.escape(part) for part in parts))


def separated(data: Iterator[tuple[int, bytes]], separator: str) -> Iterator[tuple[int, bytes, bool]]:
    """Cut blocks at a separator: yield (offset, bytes, whether a document ends there).

    A document comes in several pieces where it is longer than a block.
    """
    pattern, longest = separator_pattern(separator), 2 * len(separator.encode())
    held, offset = b"", 0
    for at, block in data:
        offset = at - len(held)
        held += block
        begin = 0
        for match in pattern.finditer(held):
            yield offset + begin, held[begin : match.start()], True
            begin = match.end()
        # What may be the beginning of a separator waits for the next block.
        keep = max(begin, len(held) - longest)
        if keep > begin:
            yield offset + begin, held[begin:keep], False
        held, offset = held[keep:], offset + keep
    yield offset, held, True


def ranges(path: Path, pattern: re.Pattern[bytes], longest: int, piece_bytes: int) -> Iterator[tuple[int, int | None]]:
    """Cut a file into ranges that begin after a separator of at most `longest` bytes; a compressed file is one."""
    if path.suffix in COMPRESSED:
        yield 0, None
        return
    with reading(path) as file:
        size, start = path.stat().st_size, 0
        while start < size:
            end = min(_after_separator(file, pattern, longest, start + piece_bytes), size)
            yield start, end
            start = end


def _after_separator(file: BinaryIO, pattern: re.Pattern[bytes], longest: int, position: int) -> int:
    """Return where the first separator that begins at or after `position` ends, or a place past the file's end."""
    tail = b""
    file.seek(position)
    while chunk := file.read(BLOCK_BYTES):
        data = tail + chunk
        if match := pattern.search(data):
            return position + match.end()
        tail = data[-(longest - 1) :] if longest > 1 else b""
        position += len(data) - len(tail)
    return position + len(tail) + 1


def occurs(path: Path, separator: str) -> bool:
    """Whether a separator is in a file."""
    pattern, longest = separator_pattern(separator), 2 * len(separator.encode())
    tail = b""
    for _, block in blocks(path):
        if pattern.search(tail + block):
            return True
        tail = (tail + block)[-longest:]
    return False
