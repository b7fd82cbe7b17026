"""The `zoo` command: its subcommands, in the order of the help, and what ends each of them.

Nothing heavy is imported at the top: `zoo --help`, `zoo show` and every refusal of a bad recipe answer at once.
Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import contextlib
import errno
import os
import signal
import sys
from typing import Annotated

import typer

import zoo
from zoo.address_space import watch_imports
from zoo.child import import_nothing_from_here
from zoo.cli import bench, docs, folders, looking, models, study, training
from zoo.cli.app import App
from zoo.cli.starting import without_pydantic_plugins
from zoo.errors import RecipeError, ZooError
from zoo.terminal import err, out, tolerate_encoding

app = App(
    help="Attention architectures as YAML recipes: show what they cost, train them, generate from them.",
    epilog="A first run: zoo train zoo:quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(training.data_app, name="data")
app.add_typer(bench.app, name="bench")
app.add_typer(study.app, name="study")
app.add_typer(docs.app, name="docs")

REFUSALS = {  # what the system may say to any command, and is no bug
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EROFS), "cannot be written"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE), "cannot be read or written"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "cannot be opened"),
}
Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=lambda wanted: _version(wanted), is_eager=True, help="Print the version and exit."
    ),
]

app.command()(folders.init)
app.command()(folders.recipes)
app.command()(training.train)
app.command()(looking.show)
app.command()(folders.runs)
app.command()(looking.compare)
app.command()(models.generate)
app.command(name="eval")(models.evaluate)
app.command()(models.export)
app.command(name="import")(models.import_)
app.command()(models.convert)
app.command()(looking.cost)
app.command()(looking.blocks)
app.command()(looking.parts)
app.command()(looking.keys)
app.command()(looking.schema)


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
        if end.code == 130:
            _tell("interrupted")
        return end.code if isinstance(end.code, int) else 0
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not _has_working_directory():
            _tell("the working directory was removed; change to a folder that is there")
            return 1
        if error.errno not in REFUSALS:
            raise
        _tell(f"{error.filename or 'standard output'}: {REFUSALS[error.errno]}: {error.strerror}")
        with contextlib.suppress(OSError, ValueError):  # what was not written would fail once more when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from zoo.training.failures import explained

        if (told := explained(error)) is None or os.environ.get("ZOO_TRACEBACK"):
            raise
        _tell(told)
        return 1
    return 0


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _tell(message: str) -> None:
    err(message)  # does nothing if the reader has gone; the exit code still says that the command failed


def main() -> None:
    """The `zoo` command."""
    tolerate_encoding()
    import_nothing_from_here()
    without_pydantic_plugins()
    watch_imports()
    code = run()
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # what was to be done is done; its exit code must stay
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.exit(code)
