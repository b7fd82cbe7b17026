"""The help of every command: an example that the command line accepts, and no types of Python."""

import re
import shlex

import pytest
import typer

from zoo import cli
from zoo.cli import app
from zoo.cli.examples import EXAMPLES
from zoo.docs.commands_page import commands

ROOT = typer.main.get_command(app)
COMMANDS = dict(commands(ROOT, "zoo"))


def test_every_command_has_an_example_and_no_other_has():
    assert EXAMPLES.keys() == COMMANDS.keys()


@pytest.mark.parametrize("path", COMMANDS)
def test_an_example_is_accepted(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(EXAMPLES[path].split(" > ")[0])
    assert " ".join(words).startswith(path)
    COMMANDS[path].make_context(path, words[len(path.split()) :])  # raises for an option that there is not


@pytest.mark.parametrize("path", COMMANDS)
def test_help_names_values_and_shows_the_example(path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run([*path.split()[1:], "--help"]) == 0
    shown = capsys.readouterr().out
    assert not re.search(r"<(bool|str|int|float|path|list)", shown)
    assert f"Example: {EXAMPLES[path]}" in " ".join(shown.split())
    assert re.search(rf"Usage: {path} \[OPTIONS\][^{{}}<>]*$", shown, re.MULTILINE)
