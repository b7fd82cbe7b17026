"""`zoo generate`: text on standard output while it is generated, everything else on standard error."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zoo.files import read_bytes
from zoo.inference.errors import GenerationError
from zoo.json_text import json_text
from zoo.terminal import clean, err


@dataclass(frozen=True)
class Request:
    """What the user asked for; see the options of `zoo generate`. sampling: fields of `Sampling`."""

    run: Path
    prompts: Sequence[str] = ()
    files: Sequence[str] = ()
    max_tokens: int = 256
    stop: Sequence[str] = ()
    device: str = "auto"
    dtype: str = "auto"
    sampling: dict[str, Any] = field(default_factory=dict)
    echo: bool = False
    json: bool = False
    stats: bool = False


def generate_command(request: Request) -> None:
    """Generate and print. Several texts are printed one after the other, though they are generated side by side."""
    prompts = [*request.prompts, *(_read(name) for name in request.files)]
    if not prompts:
        raise GenerationError('no prompt: give --prompt "...", --prompt-file FILE, or - for standard input')
    from zoo.inference.generate import generate  # torch; a mistake above is told at once

    generation = generate(
        request.run,
        prompts,
        max_tokens=request.max_tokens,
        stop=request.stop,
        device=request.device,
        dtype=request.dtype,
        say=_note,
        **request.sampling,
    )
    if request.json:
        for result in generation.results:
            print(json_text(asdict(result), indent=None), end="", flush=True)
    else:
        _print(generation, prompts, request.echo)
    if request.stats:
        err(generation.stats.text())


def _read(name: str) -> str:
    """The text of a file, or of standard input for "-"; line ends and a last newline stay as they are."""
    if name == "-" and sys.stdin is None:
        raise GenerationError("standard input: cannot be read: it is closed")
    try:
        content = sys.stdin.buffer.read() if name == "-" else read_bytes(name, error=GenerationError)
        return content.decode()
    except OSError as error:
        raise GenerationError(f"{name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        place = f"byte {error.start}, counted from 0, is 0x{error.object[error.start]:02x}"
        raise GenerationError(f"{'standard input' if name == '-' else name}: not UTF-8: {place}") from error


def _print(generation, prompts: Sequence[str], echo: bool) -> None:
    """Each text and a line break. A heading on standard error where there are several.

    A terminal that cannot show a character gets a question mark, and control characters as escapes: a model may write
    any.  A file or a pipe gets the text as it is.
    """
    shown = clean if sys.stdout.isatty() else str
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    for index, pieces in enumerate(_in_order(generation, len(prompts))):
        if len(prompts) > 1:
            err(f"-- prompt {index + 1} of {len(prompts)}")
        if echo:
            print(shown(prompts[index]), end="", flush=True)
        for piece in pieces:
            print(shown(piece.text), end="", flush=True)
        print(flush=True)


def _in_order(generation, n_rows: int) -> Iterator[Iterator]:
    """The pieces of each row, row by row; those of later rows wait until it is their turn."""
    waiting: list[list] = [[] for _ in range(n_rows)]

    def of_row(index: int) -> Iterator:
        yield from waiting[index]
        if waiting[index] and waiting[index][-1].finish:
            return
        for piece in generation:
            if piece.index == index:
                yield piece
                if piece.finish:
                    return
            else:
                waiting[piece.index].append(piece)

    for index in range(n_rows):
        yield of_row(index)


def _note(text: str) -> None:
    err(f"note: {text}")
