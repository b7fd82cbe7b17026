"""The commands of docs/compare.md that write a picture or a page; tests/test_docs.py runs its other examples."""

import re
import shlex
from pathlib import Path

import pytest

from zoo import cli

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, text in FENCES if not language for line in text.splitlines()]
WRITING = [line for line in COMMANDS if re.search(r"--html|-o ", line) and not re.search(r"runs/|--train", line)]


def test_there_are_examples():
    assert len(WRITING) >= 2
    assert all(line.startswith("zoo ") for line in COMMANDS)


@pytest.mark.parametrize("line", WRITING)
def test_a_command_writes_what_it_says(line, tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    assert cli.run(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    words = shlex.split(line)
    (option,) = {"--html", "-o"} & set(words)
    assert (tmp_path / words[words.index(option) + 1]).stat().st_size > 1000
