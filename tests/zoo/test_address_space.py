import resource
import subprocess
import sys

import pytest

from zoo import address_space, cli
from zoo.training.failures import out_of_memory


def limited(*arguments: str) -> subprocess.CompletedProcess:
    """`zoo` under a limit of 1 GB, in which PyTorch cannot be imported."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))\n"
        f"sys.argv = {['zoo', *arguments]!r}; from zoo.cli import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_command_that_needs_torch_is_refused_in_one_line(tmp_path):
    done = limited("train", "recipes/tiny/full.yaml", "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "this shell limits the address space of a process to 1.0 GB, which is too little for PyTorch: "
        "raise the limit (ulimit -v unlimited)"
    )
    assert "Traceback" not in done.stderr


def test_a_command_that_only_looks_works_in_little_memory():
    assert limited("show", "recipes/tiny/full.yaml").returncode == 0


def test_nothing_is_tried_without_a_low_limit(monkeypatch):
    before = list(sys.meta_path)
    for most in (resource.RLIM_INFINITY, address_space.TRIED_BELOW_BYTES):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, most=most: (most, most))
        address_space.watch_imports()
    assert sys.meta_path == before


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory: you tried")])
def test_memory_that_runs_out_in_any_command_is_one_line(monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(sys.modules["zoo.cli.main"], "app", fail)
    assert cli.run(["show"]) == 1
    assert capsys.readouterr().err.startswith("out of memory: ")


def test_other_errors_stay_as_they_are(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(sys.modules["zoo.cli.main"], "app", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.run(["show"])
    assert out_of_memory(RuntimeError("shapes differ")) is None
