"""Training through the command line, in processes that are killed, and in several processes at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zoo import load_recipe
from zoo.model import build_model
from zoo.runs.metrics import read_metrics
from zoo.training import train
from zoo.training.checkpoints import listed

pytestmark = pytest.mark.slow
QUICKSTART = Path(__file__).parents[3] / "recipes" / "quickstart.yaml"


def command(recipe_file, run, *overrides):
    sets = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, "-m", "zoo", "train", str(recipe_file), "--run-dir", str(run), *sets]


def finish(arguments, environment):
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(run):
    return {r["batch"]: r["loss"] for r in read_metrics(run / "metrics.jsonl") if "loss" in r}


@pytest.mark.long
@pytest.mark.long
def test_a_killed_run_of_the_quickstart_goes_on_to_the_same_bits(tmp_path, environment):
    """SIGKILL after a checkpoint, and the same command again: bit-identical to a run in one go."""
    settings = ["train.duration=20ba", "train.schedule.warmup=2ba", "train.checkpoint.every=4ba", "eval.batches=1"]
    settings += ["train.batch_size=4", f"data.cache_dir={tmp_path / 'cache'}"]
    straight, run = tmp_path / "straight", tmp_path / "run"
    finish(command(QUICKSTART, straight, *settings), environment)
    process = subprocess.Popen(
        command(QUICKSTART, run, *settings), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while max(losses(run), default=0) < 10:
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -9
    assert not (run / "model.safetensors").exists()
    at = listed(run / "checkpoints")[-1].batch
    assert 8 <= at < 20
    assert f"resumes after batch {at} of 20" in finish(command(QUICKSTART, run, *settings), environment)
    found, expected = load_file(run / "model.safetensors"), load_file(straight / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(run) == losses(straight)
    assert "run complete: quickstart, 20 batches" in finish(command(QUICKSTART, run, *settings), environment)


def test_a_reader_that_goes_does_not_stop_training_nor_keep_ctrl_c_from_saving(recipe_file, tmp_path, environment):
    """`zoo train ... 2>&1 | tee log`, and Ctrl-C, which ends tee first; output is held back, as in a user's shell."""
    run, environment = tmp_path / "run", {name: v for name, v in environment.items() if name != "PYTHONUNBUFFERED"}
    arguments = command(recipe_file, run, "train.duration=2000ba", "train.checkpoint.every=1dur", "eval.every=1dur")
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        process.stdout.readline()
        process.stdout.close()
        while max(losses(run), default=0) < 110:  # a line every 100 batches
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    (saved,) = listed(run / "checkpoints")
    assert saved.batch >= 110
    assert f"stopped after batch {saved.batch} of 2000" in (run / "log.txt").read_text()


@pytest.fixture(scope="module")
def one(recipe_file, tmp_path_factory):
    """A run of one process, resumed after batch 4."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("one") / "run"
    for duration in ("4ba", "6ba"):
        train(load_recipe(recipe_file, [f"train.duration={duration}"]), run)
    return run


@pytest.mark.filterwarnings("ignore:.*leaked shared_memory:UserWarning")
@pytest.mark.parametrize("parallelism", [pytest.param("ddp", marks=pytest.mark.long), "fsdp2", "zero2", "once a batch"])
def test_two_processes_train_as_one(one, recipe_file, tmp_path, environment, parallelism):
    """The same global batches on two devices give the losses of one device; and they resume.

    By Composer's launcher, and by ours, which is torchrun without its warning of OMP_NUM_THREADS.
    """
    fsdp2 = ("train.parallelism=fsdp2", "train.reshard_after_forward=false")
    settings = {"zero2": fsdp2, "once a batch": (*fsdp2, "train.gradient_sync=batch", "train.micro_batch=1")}
    two = command(recipe_file, tmp_path / "two", *settings.get(parallelism, (f"train.parallelism={parallelism}",)))
    if parallelism == "ddp":
        two = [sys.executable, "-m", "composer.cli.launcher", "-n", "2", *two[1:]]
    else:
        two += ["--devices", "2"]
    environment.pop("OMP_NUM_THREADS", None)
    for duration in ("4ba", "6ba"):
        done = subprocess.run(
            [*two, "--set", f"train.duration={duration}"], env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "OMP_NUM_THREADS" not in done.stderr
        assert "barrier()" not in done.stderr
    assert list(losses(tmp_path / "two")) == [1, 2, 3, 4, 5, 6]
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-5)
    found = load_file(tmp_path / "two" / "model.safetensors")
    for name, expected in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4)


COUNTS = """
import json, os, sys
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as group
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook

counts, groups = dict(gathers=0, reductions=0, unsynced=0), set()

def count(owner, name, kind):
    call = getattr(owner, name)
    def counted(*arguments, **options):
        counts[kind] += 1
        if kind == "gathers":
            groups.add(id(arguments[0]))
        return call(*arguments, **options)
    setattr(owner, name, counted)

count(group.FSDPParamGroup, "_to_unsharded", "gathers")
count(group, "foreach_reduce", "reductions")
count(DistributedDataParallel, "no_sync", "unsynced")

def after_step(*_):
    frame, ours = sys._getframe(), False
    while frame is not None:
        ours, frame = ours or type(frame.f_locals.get("self")).__name__ == "BatchStep", frame.f_back
    if os.environ["RANK"] == "0":
        with open(os.environ["COUNTS"], "a") as file:
            file.write(json.dumps(dict(counts, ours=ours, groups=len(groups))) + chr(10))
    counts.update(dict.fromkeys(counts, 0))

register_optimizer_step_post_hook(after_step)
"""


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(("parallelism=ddp",), id="ddp"),
        pytest.param(("parallelism=fsdp2",), id="fsdp2", marks=pytest.mark.long),
        pytest.param(("parallelism=fsdp2", "reshard_after_forward=false"), id="gathered once", marks=pytest.mark.long),
        pytest.param(("parallelism=fsdp2", "gradient_sync=batch"), id="summed once", marks=pytest.mark.long),
        pytest.param(("parallelism=fsdp2", "reshard_after_forward=false", "gradient_sync=batch"), id="both once"),
    ],
)
def test_batches_of_two_processes_without_waits_are_composers(settings, recipe_file, tmp_path, environment):
    """Bit for bit, with the same exchanges. With `cuda_graph: off` Composer's own step runs, otherwise ours."""
    (tmp_path / "count_exchanges.py").write_text(COUNTS)
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    environment.pop("OMP_NUM_THREADS", None)
    recipe = load_recipe(recipe_file)
    n, batch_tokens = recipe.train.batch_size // 2, recipe.train.batch_size * recipe.seq_len
    found = {}
    for graph in ("auto", "off"):
        run, counts = tmp_path / graph, tmp_path / f"{graph}.jsonl"
        keys = (*settings, "micro_batch=1", "duration=4ba", f"cuda_graph={graph}")
        one = command(recipe_file, run, *(f"train.{key}" for key in keys))
        finish([*one, "--devices", "2", "--plugin", "count_exchanges"], environment | {"COUNTS": str(counts)})
        for line in counts.read_text().splitlines()[1:]:  # the first batch also frees what a validation gathered
            exchanged = json.loads(line)
            assert exchanged["ours"] is (graph == "auto")
            groups = exchanged["groups"]
            assert exchanged["gathers"] == groups * (1 if "reshard_after_forward=false" in settings else 2 * n)
            assert exchanged["reductions"] == groups * (1 if "gradient_sync=batch" in settings else n)
            assert exchanged["unsynced"] == (n - 1 if settings == ("parallelism=ddp",) else 0)
        records = [r for r in read_metrics(run / "metrics.jsonl") if "loss" in r]
        assert [r["tokens"] for r in records] == [batch_tokens * (i + 1) for i in range(4)]
        found[graph] = [(r["loss"], r["grad_norm"]) for r in records], load_file(run / "model.safetensors")
    assert found["auto"][0] == found["off"][0]
    assert all(torch.equal(found["auto"][1][name], tensor) for name, tensor in found["off"][1].items())


FAILS_ALONE = """
import os
if os.environ.get("RANK") == "1":
    from zoo.model.decoder import Decoder
    loss, calls = Decoder.loss, []
    def failing(*arguments, **options):
        calls.append(None)
        if len(calls) == 4:
            raise RuntimeError("only here")
        return loss(*arguments, **options)
    Decoder.loss = failing
"""


@pytest.mark.parametrize("parallelism", ["ddp", pytest.param("fsdp2", marks=pytest.mark.long)])
@pytest.mark.parametrize("command_line", ["train", "bench train"])
def test_one_process_that_fails_alone_ends_all(command_line, parallelism, recipe_file, tmp_path, environment):
    """It waits for nobody: the others never come to where it would wait for them."""
    (tmp_path / "fails_alone.py").write_text(FAILS_ALONE)
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    environment.pop("OMP_NUM_THREADS", None)
    two = [sys.executable, "-m", "zoo", *command_line.split(), str(recipe_file), "--devices", "2"]
    two += ["--plugin", "fails_alone", "--set", f"train.parallelism={parallelism}"]
    two += ["--run-dir", str(tmp_path / "run")] if command_line == "train" else []
    done = subprocess.run(two, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "RuntimeError: only here" in done.stderr.splitlines()[-1]


@pytest.mark.long
@pytest.mark.parametrize("parallelism", ["ddp", pytest.param("fsdp2", marks=pytest.mark.long)])
def test_two_processes_keep_frozen_parameters(recipe_file, tmp_path, environment, parallelism):
    keys = ("train.freeze=[embedding, layers.0]", "train.optimizer={lr: 0.01, lr_multipliers: {norm: 0.5}}")
    environment.pop("OMP_NUM_THREADS", None)
    settings = (f"train.parallelism={parallelism}", *keys, "train.duration=2ba", "train.schedule.warmup=0ba")
    finish([*command(recipe_file, tmp_path / "two", *settings), "--devices", "2"], environment)
    start = build_model(load_recipe(recipe_file)).state_dict()
    for name, tensor in load_file(tmp_path / "two" / "model.safetensors").items():
        assert torch.equal(tensor, start[name]) == name.startswith(("embedding.", "layers.0.")), name


@pytest.mark.long
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_two_processes_balance_experts_as_one(recipe_file, tmp_path, environment, parallelism):
    """Choices are counted over all devices, so that the bias, the loads and the losses are those of one device."""
    ffn = "model.ffn={kind: moe, n_experts: 4, d_ff: 16, balance_loss: 0.0, z_loss: 0.0001, balance_rate: 0.05}"
    settings = (ffn, "train.duration=3ba", f"train.parallelism={parallelism}")
    environment.pop("OMP_NUM_THREADS", None)
    finish([*command(recipe_file, tmp_path / "two", *settings), "--devices", "2"], environment)
    finish(command(recipe_file, tmp_path / "one", *settings), environment)
    two, one = ([r for r in read_metrics(tmp_path / run / "metrics.jsonl") if "loss" in r] for run in ("two", "one"))
    # Of what layers add, each device takes the mean over its own tokens.
    for name, rel in {"loss": 1e-4, "added_loss": 1e-2, "expert_load_max": 1e-6, "expert_load_min": 1e-6}.items():
        assert [r[name] for r in two] == pytest.approx([r[name] for r in one], rel=rel), name
    found = load_file(tmp_path / "two" / "model.safetensors")
    for name, expected in load_file(tmp_path / "one" / "model.safetensors").items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=3e-3)
    assert found["layers.0.feed_forward.balance_bias"].any()


@pytest.mark.long
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_two_processes_predict_further_tokens_as_one(recipe_file, tmp_path, environment, parallelism):
    """The modules' losses are summed as the model's is, so that devices may differ in their targets."""
    settings = ("model.multi_token={depth: 2}", "train.duration=3ba", f"train.parallelism={parallelism}")
    environment.pop("OMP_NUM_THREADS", None)
    finish([*command(recipe_file, tmp_path / "two", *settings), "--devices", "2"], environment)
    finish(command(recipe_file, tmp_path / "one", *settings), environment)
    two, one = ([r for r in read_metrics(tmp_path / run / "metrics.jsonl") if "loss" in r] for run in ("two", "one"))
    for name in ("loss", "added_loss", "multi_token_loss"):
        assert [r[name] for r in two] == pytest.approx([r[name] for r in one], rel=1e-4), name
    found = load_file(tmp_path / "two" / "model.safetensors")
    for name, expected in load_file(tmp_path / "one" / "model.safetensors").items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-3)
