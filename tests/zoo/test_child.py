"""Processes that a command starts: a working directory of somebody else brings them no modules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import child, cli

# `zoo`, whose command starts a process as tokenising does; {before}: a change of ours.
COMMAND = """
import multiprocessing, sys
import zoo.cli
command = sys.modules["zoo.cli.main"]
{before}
def start(*arguments, **settings):
    process = multiprocessing.get_context("spawn").Process(target=print, args=("started",))
    process.start()
    process.join()
    sys.exit(process.exitcode)
if __name__ == "__main__":
    command.app = start
    command.main()
"""


@pytest.fixture
def strange(tmp_path) -> Path:
    """A folder with a module that multiprocessing imports under the name of Python's own; it makes ../imported."""
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "socket.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'imported')!r})\n")
    return folder


def run(folder: Path, before: str = "") -> subprocess.CompletedProcess:
    program = folder.parent / "program" / "zoo.py.txt"
    program.parent.mkdir()
    program.write_text(COMMAND.format(before=before))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, str(program)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_started_process_imports_nothing_from_the_working_directory(strange):
    done = run(strange)
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
    assert not (strange.parent / "imported").exists()


def test_python_alone_would_import_it(strange):
    """What the test above rules out does happen without the precaution."""
    run(strange, before="command.import_nothing_from_here = lambda: None")
    assert (strange.parent / "imported").exists()


def test_who_imports_from_the_working_directory_goes_on_to(monkeypatch, tmp_path):
    """As `python -m zoo` does, for plugins that lie there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    child.import_nothing_from_here()
    assert "PYTHONSAFEPATH" not in os.environ
    assert child.python_module("zoo", [])[1] == "-m"


def test_a_working_directory_that_was_removed_is_no_traceback(monkeypatch, tmp_path, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.chdir(gone)
    gone.rmdir()
    child.import_nothing_from_here()
    assert os.environ["PYTHONSAFEPATH"] == "1"
    assert cli.run(["init"]) == 1
    assert capsys.readouterr().err == "the working directory was removed; change to a folder that is there\n"
    assert cli.run(["show", "zoo:quickstart"]) == 0
