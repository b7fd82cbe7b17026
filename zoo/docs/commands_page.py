"""The command line reference, written from the commands themselves. No torch."""

from collections.abc import Iterator
from typing import Any

import typer

from zoo.cli.examples import EXAMPLES

PATH = "reference/commands.md"


def commands_page(app: typer.Typer) -> str:
    """Markdown of the page: every command of `zoo` with its usage, arguments and options."""
    root = typer.main.get_command(app)
    intro = (
        f"# Commands\n\n{root.help}\n\nExit codes of every command: 0 done, 1 failed, 2 bad input, 130 interrupted. "
        "Errors go to standard error, one line each.\n"
    )
    return "\n".join([intro, *(_section(path, command) for path, command in commands(root, "zoo"))])


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(`zoo data prepare`, command) of every command, depth first; groups are walked, not listed."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, f"{path} {name}")


def _section(path: str, command: Any) -> str:
    context = command.make_context(path, [], resilient_parsing=True)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    parameters = [one for one in command.get_params(context) if one.name != "help"]
    records = [parameter.get_help_record(context) for parameter in parameters]
    rows = [f"| `{_line(name)}` | {_cell(text)} |" for name, text in filter(None, records)]
    table = "\n".join(["| | |", "|---|---|", *rows]) if rows else "No options."
    example = f"```bash\n{EXAMPLES[path]}\n```\n\n" if path in EXAMPLES else ""
    return f"## {path}\n\n{_prose(command.help or '')}\n\n{example}```text\n{usage}\n```\n\n{table}\n"


def _prose(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|").replace("[", "&#91;")
