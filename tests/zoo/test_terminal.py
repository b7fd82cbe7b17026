"""Nothing of others reaches a terminal as a control sequence."""

import errno
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoo import terminal
from zoo.training import screen
from zoo.training.screen import CleanFormatter

HOSTILE = {
    "colour": "\x1b[31mred",
    "link": "\x1b]8;;http://x\x07here\x1b]8;;\x07",
    "clipboard": "\x1b]52;c;cm0=\x07",
    "C1": "\x9b31m\x9d52;",
    "carriage return": "good\rbad",
    "backspace": "a\x08b",
    "bidi": "abc\u202egpj.exe\u2066",
    "separator": "a\u2028b",
    "surrogate": "a\udc9bb",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_clean(kind):
    found = terminal.clean(HOSTILE[kind])
    assert found.isprintable()
    assert "\\" in found
    assert terminal.clean(found) == found


def test_line_feeds_stay_and_are_escaped_inside_a_message():
    assert terminal.clean("a\n\tb é 文 👍🏽") == "a\n\tb é 文 👍🏽"
    assert terminal.one_line("a\n\tb\x1b") == r"a\n\tb\x1b"


def test_out_and_err(capsys):
    terminal.out("a\x1b[2J")
    terminal.err("b\x9b", end="")
    assert capsys.readouterr() == ("a\\x1b[2J\n", "b\\x9b")


def test_an_encoding_that_lacks_a_character(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    terminal.out("é\x1b", flush=True)
    assert stream.buffer.getvalue() == b"?\\x1b\n"


def test_log_lines():
    record = logging.LogRecord("zoo", logging.INFO, "", 0, "a\x1b[31m%s", ("\r",), None)
    assert CleanFormatter("%(message)s").format(record) == r"a\x1b[31m\x0d"


def test_what_is_unsafe_is_never_printable_to_python():
    """Text that is printable is not searched at all."""
    unsafe = [char for char in map(chr, range(0x110000)) if terminal._unsafe().match(char)]
    assert len(unsafe) > 2_000
    assert not any(char.isprintable() for char in unsafe)


def test_rich_text_is_cleaned_and_keeps_its_colours():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", markup=False, width=60)
    table = Table()
    table.add_column(HOSTILE["link"])
    table.add_row("[link=http://x]name[/link]")
    table.add_row(Text("linked", style="red link http://y"))
    console.print(terminal.cleaned(table, console))
    written = console.file.getvalue()
    assert "\x1b]8" not in written
    assert "\x1b[31m" in written
    assert "[link=http://x]name" in written


def test_characters_that_ascii_lacks_become_near_ones(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    terminal.tolerate_encoding()
    terminal.out("x\u00d70.50 \u2192 Gr\u00f6\u00dfe \u2026")
    print("\u2264 \u6ce8", file=stream, flush=True)
    assert stream.buffer.getvalue() == b"xx0.50 -> Gr??e ...\n<= ?\n"


def test_a_line_is_one_write_without_buffering(monkeypatch):
    """With PYTHONUNBUFFERED=1; the lines of several processes mixed in one log or pipe otherwise."""
    writes = []

    class Pipe(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            writes.append(bytes(data))
            return len(data)

    stream = io.TextIOWrapper(Pipe(), encoding="utf-8", write_through=True)
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", stream)
    terminal.out("batch 1")
    terminal.err("batch 2")
    terminal.out_styled("batch 3")
    assert writes == [b"batch 1\n", b"batch 2\n", b"batch 3\n"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_comparison_is_printed_on_a_terminal_without_utf8(encoding):
    recipes = Path(__file__).parents[2] / "recipes" / "tiny"
    command = [sys.executable, "-m", "zoo", "compare", recipes / "full.yaml", recipes / "nsa.yaml"]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert done.stderr == b""
    assert (b" x1." if encoding == "ascii" else b" \xd71.") in done.stdout


@pytest.fixture
def closed_terminal():
    """A stream to a terminal whose window was closed: writing fails with EIO, not with a broken pipe."""
    controls, terminal = os.openpty()
    stream = os.fdopen(terminal, "w", buffering=1)
    os.close(controls)
    yield stream
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())  # for what the stream still holds
    stream.close()


def test_a_message_to_a_closed_terminal_is_no_failure(closed_terminal, monkeypatch):
    """After the SIGHUP of an ended ssh session the exit code is to say how the command ended."""
    monkeypatch.setattr(sys, "stderr", closed_terminal)
    terminal.err("stopped after batch 3")


def test_a_training_goes_on_when_its_terminal_is_closed(closed_terminal, monkeypatch):
    """It has a checkpoint to write."""
    with open(os.devnull, "w") as nowhere:
        monkeypatch.setattr(sys, "stdout", nowhere)
        console = screen._Console(file=closed_terminal)
        console.print("batch 3")
    assert console.quiet


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EBADF])
def test_other_failures_of_standard_error_are_raised(number, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys, "stderr", Full())
    with pytest.raises(OSError, match=os.strerror(number)):
        terminal.err("a message")
