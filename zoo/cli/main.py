"""The `zoo` command: its subcommands, in the order of the help, and what ends each of them.

Nothing heavy is imported at the top: `zoo --help`, `zoo show` and every refusal of a bad recipe answer at once.
Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import contextlib
import errno
import os
import signal
import sys
from typing import Annotated, TextIO

import typer

import zoo
from zoo.address_space import watch_imports
from zoo.child import import_nothing_from_here, pipe_to_launcher
from zoo.cli.app import App
from zoo.cli.starting import leave_out_of_searches, without_pydantic_plugins
from zoo.errors import AlreadyTold, RecipeError, ZooError
from zoo.terminal import err, out, reader_gone, tolerate_encoding

COMMANDS = {  # in the order of the help
    "init": "zoo.cli.folders:init",
    "recipes": "zoo.cli.folders:recipes",
    "train": "zoo.cli.training:train",
    "show": "zoo.cli.looking:show",
    "runs": "zoo.cli.folders:runs",
    "compare": "zoo.cli.looking:compare",
    "generate": "zoo.cli.models:generate",
    "eval": "zoo.cli.models:evaluate",
    "export": "zoo.cli.models:export",
    "import": "zoo.cli.models:import_",
    "convert": "zoo.cli.models:convert",
    "cost": "zoo.cli.looking:cost",
    "blocks": "zoo.cli.looking:blocks",
    "parts": "zoo.cli.looking:parts",
    "keys": "zoo.cli.looking:keys",
    "schema": "zoo.cli.looking:schema",
    "data": "zoo.cli.training:data_app",
    "bench": "zoo.cli.bench:app",
    "study": "zoo.cli.study:app",
    "docs": "zoo.cli.docs:app",
}
app = App(
    COMMANDS,
    help="Attention architectures as YAML recipes: show what they cost, train them, generate from them.",
    epilog="A first run: zoo train zoo:quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

REFUSALS = {  # what the system may say to any command, and is no bug; of a file anything may be said
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EROFS), "cannot be written"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE), "cannot be read or written"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "cannot be opened"),
}
_launcher: int | None = None  # the pipe of a process of `zoo train --devices` to the one that started it
Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=lambda wanted: _version(wanted), is_eager=True, help="Print the version and exit."
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        out(f"zoo {zoo.__version__}")
        raise typer.Exit


@app.callback()
def _options(version: Version = False) -> None:
    wanted = os.environ.get("ZOO_KERNELS") or "auto"
    if wanted not in ("auto", "reference"):  # as `train.kernels`; told before anything is read or prepared
        raise typer.BadParameter(f"must be auto or reference; found {wanted!r}.", param_hint="ZOO_KERNELS")


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; a mistake of the user is one message, never a traceback."""
    try:
        app(arguments, prog_name="zoo")
    except ZooError as error:
        _tell(str(error))
        if isinstance(error, RecipeError) and error.of_keys:
            from zoo.recipe.keys import hint

            if found := hint(error.problems):
                _tell(found)
        return error.exit_code
    except SystemExit as end:  # typer's way out: 0, 2 after a usage error, 130 after Ctrl-C, 1 when the reader has gone
        if end.code == 130 and not isinstance(end, AlreadyTold):
            _tell("interrupted")
        return end.code if isinstance(end.code, int) else 0
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not _has_working_directory():
            _tell("the working directory was removed; change to a folder that is there")
            return 1
        refusal = REFUSALS.get(error.errno or 0, "cannot be used" if error.filename else "")
        if not refusal or os.environ.get("ZOO_TRACEBACK"):
            raise
        _tell(f"{error.filename or 'standard output'}: {refusal}: {error.strerror}")
        _write_no_more(sys.stdout)
        return 1
    except Exception as error:
        from zoo.training.failures import explained

        if (told := explained(error)) is None or os.environ.get("ZOO_TRACEBACK"):
            raise
        _tell(told)
        return 1
    return 0


def _write_no_more(stream: TextIO) -> None:
    """What a stream did not take would fail once more when Python ends, and give the exit code 120."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _written(code: int) -> int:
    """Write what the two streams still hold; the exit code, 1 if standard output fails.

    A reader that went away is no error, and there is nobody to tell.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            _write_no_more(stream)
            if stream is sys.stdout:
                code = code or 1
                if not reader_gone(error):
                    _tell(f"standard output: {REFUSALS.get(error.errno or 0, 'cannot be written')}: {error.strerror}")
    return code


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _tell(message: str) -> None:
    """Print why a command ended. A process of `zoo train --devices` leaves it to its launcher, which prints it once."""
    if _launcher is not None:
        with contextlib.suppress(OSError):
            os.write(_launcher, f"{message}\n".encode("utf-8", "replace"))
        if os.environ.get("RANK") != "0":
            return
    err(message)  # does nothing if the reader has gone; the exit code still says that the command failed


def main() -> None:
    """The `zoo` command."""
    global _launcher
    _launcher = pipe_to_launcher()
    tolerate_encoding()
    import_nothing_from_here()
    without_pydantic_plugins()
    watch_imports()
    try:
        code = run()
    except Exception:  # a bug
        if _launcher is None:
            raise
        import traceback

        _tell(traceback.format_exc().rstrip())
        code = 1
    code = _written(code)
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # what was to be done is done; its exit code must stay
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda *_: _leave(code))  # libraries take seconds to clean up, and print tracebacks
    leave_out_of_searches()
    sys.exit(code)


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # the signal may have cut into another flush
            stream.flush()
    os._exit(code)
