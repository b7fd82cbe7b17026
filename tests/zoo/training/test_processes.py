"""Training through the command line, in processes that are killed, and in several processes at once."""

import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from zoo.training.checkpoints import listed
from zoo.training.loggers import read_metrics

pytestmark = pytest.mark.slow


def command(recipe_file, run, *overrides):
    sets = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, "-m", "zoo", "train", str(recipe_file), "--run-dir", str(run), *sets]


def finish(arguments, environment):
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(run):
    return {r["batch"]: r["loss"] for r in read_metrics(run / "metrics.jsonl") if "loss" in r}


def test_a_killed_run_goes_on_to_the_same_bits(recipe_file, tmp_path, environment):
    """SIGKILL after a checkpoint, and the same command again: bit-identical to a run in one go."""
    settings = ("train.duration=100ba", "train.checkpoint.every=20ba", "train.workers=1")
    straight, run = tmp_path / "straight", tmp_path / "run"
    finish(command(recipe_file, straight, *settings), environment)
    process = subprocess.Popen(
        command(recipe_file, run, *settings), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while max(losses(run), default=0) < 47:
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -9
    assert not (run / "model.safetensors").exists()
    at = listed(run / "checkpoints")[-1].batch
    assert 40 <= at < 100
    assert f"resumes after batch {at} of 100" in finish(command(recipe_file, run, *settings), environment)
    found, expected = load_file(run / "model.safetensors"), load_file(straight / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(run) == losses(straight)
    out = finish(command(recipe_file, run, *settings), environment)
    assert "run complete: tiny, 100 batches" in out


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(recipe_file, tmp_path, environment, parallelism):
    """The same global batches on two devices, by either launcher, give the losses of one device; and they resume."""
    launchers = {"ddp": "composer.cli.launcher", "fsdp2": "torch.distributed.run"}
    launch = [sys.executable, "-m", launchers[parallelism], "--nproc-per-node" if parallelism == "fsdp2" else "-n", "2"]
    arguments = command(recipe_file, tmp_path / "two", f"train.parallelism={parallelism}")[1:]
    for duration in ("4ba", "6ba"):
        finish([*launch, *arguments, "--set", f"train.duration={duration}"], environment)
    finish(command(recipe_file, tmp_path / "one", "train.duration=4ba"), environment)
    finish(command(recipe_file, tmp_path / "one", "train.duration=6ba"), environment)
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert list(two) == [1, 2, 3, 4, 5, 6]
    assert two == pytest.approx(one, rel=1e-5)
    found = load_file(tmp_path / "two" / "model.safetensors")
    for name, expected in load_file(tmp_path / "one" / "model.safetensors").items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4)
