"""The examples of docs/compare.md run: its Python, and every command that needs no training."""

import re
import shlex
from pathlib import Path

import pytest

from zoo import cli

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, text in FENCES if not language for line in text.splitlines()]
LIGHT = [line for line in COMMANDS if "runs/" not in line and "--train" not in line]


def test_there_are_examples():
    assert len(LIGHT) >= 4
    assert all(line.startswith("zoo ") for line in COMMANDS)


@pytest.mark.parametrize("line", LIGHT)
def test_a_command_runs(line, tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    assert cli.run(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    for option in ("--html", "-o"):
        if option in line:
            words = shlex.split(line)
            assert (tmp_path / words[words.index(option) + 1]).stat().st_size > 1000


@pytest.mark.parametrize("code", [text for language, text in FENCES if language == "python"])
def test_python_runs(code):
    exec(compile(code, "docs/compare.md", "exec"), {})
