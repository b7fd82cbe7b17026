"""A few of the tries of random_kills.py; its whole is run by hand (docs/reliability.md)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("random_kills.py")


def tries(folder, environment, *options):
    path = os.pathsep.join(filter(None, [str(HARNESS.parents[3]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(HARNESS), str(folder), *options]
    return subprocess.run(command, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1])
def test_killed_trainings_resume_to_the_same_bits(tmp_path, environment, seed):
    """Signals drawn at random, one and two processes: see the report for what was drawn."""
    done = tries(tmp_path, environment, "--tries", "2", "--seed", str(seed))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 ended with the same bits" in done.stdout
