"""`zoo bench train` on the CPU: what it measures, what it says of a recipe that cannot be measured, its tables."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zoo import cli
from zoo.bench import processes, train, train_peers
from zoo.bench.train_clock import WARM_UP, Clock, breakdown, largest, without_hidden
from zoo.bench.train_peers import _add_gradients, measure_peer
from zoo.bench.train_step import measure_recipe
from zoo.recipe import load_recipe

RECIPES = Path(__file__).parents[3] / "recipes"
SMALL = ["model.max_seq_len=32", "model.d_model=32", "model.ffn.d_ff=32", "train.batch_size=2"]


def test_kernels_belong_to_one_category():
    names = {
        "_add_norm_bwd_kernel": "around attention",
        "_swiglu_fwd_kernel": "around attention",
        "_fwd_kernel": "attention",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16": "attention",
        "_selection_bwd_dq_kernel": "attention",
        "nvjet_sm90_tst_192x192_64x4_1x2_h_bz_coopB_TNN": "products",
        "liger_cross_entropy_kernel": "loss",
        "ncclDevKernel_AllReduce_Sum_f32_RING_LL": "communication",
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedOptimizer": "optimiser",
        "void multi_tensor_apply_kernel<TensorListMetadata<2>, CopyFunctor<c10::BFloat16, float>>": "copies of shards",
        "void at::native::detail::chunk_cat_cuda_kernel<float, c10::BFloat16>": "copies of shards",
        "at::native::detail::split_with_sizes_copy_out_contiguous_no_cast_kernel": "copies of shards",
        "Memcpy HtoD (Pinned -> Device)": "copies",
        "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add": "elementwise",
    }
    for name, category in names.items():
        assert breakdown([(name, 2.0), (name, 1.0)]) == {category: 3.0}
    spans = [("a", 1.0), ("b", 5.0), ("a", 2.0)]
    assert largest(spans) == [["b", 5.0, 1], ["a", 3.0, 2]]
    assert largest(spans, n=1) == [["b", 5.0, 1]]


def test_communication_counts_where_nothing_else_runs():
    """A sum of all kernels would be longer than the step."""
    spans = [
        ("nvjet", 0.0, 4.0),
        ("ncclDevKernel_AllGather", 3.0, 6.0),
        ("_fwd_kernel", 5.0, 9.0),
        ("ncclDevKernel_ReduceScatter", 7.0, 8.0),
        ("ncclDevKernel_ReduceScatter", 9.0, 11.5),
    ]
    times, hidden_ms, busy_ms = without_hidden(spans)
    assert breakdown(times) == {"communication": 3.5, "attention": 4.0, "products": 4.0}
    assert hidden_ms == 3.0  # 1 beside nvjet, 1 + 1 beside the forward
    assert busy_ms == 11.5
    assert without_hidden([("a", 0.0, 4.0), ("b", 3.0, 5.0)]) == ([("a", 4.0), ("b", 2.0)], 0.0, 5.0)


def test_the_clock_leaves_out_what_compiles(monkeypatch):
    times = iter([100.0, 110.0, 111.0, 112.0, 113.0, 115.0, 117.0, 117.0, 117.0, 117.0, 117.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = Clock(steps=3, started=0.0)
    for _ in range(clock.total):
        clock.batch_end()
    assert WARM_UP == 4
    row = clock.row("tiny", 100, 50, 2, mfu_per_token=1e-3)
    assert (row["step_ms"], row["median_ms"]) == (pytest.approx(5000 / 3), 2000.0)
    assert row["tokens_per_s"] == pytest.approx(60.0)
    assert row["mfu"] == pytest.approx(0.06)


def test_a_recipe_is_measured_without_its_data():
    recipe = load_recipe(RECIPES / "tiny" / "full.yaml", [*SMALL, "data.source={kind: text, paths: [/nowhere/*.txt]}"])
    row = measure_recipe(recipe, steps=1, own_data=False, started=0.0)
    assert row["name"] == "tiny_full"
    assert row["graph"] == "no: there is no CUDA GPU"
    assert (row["micro_batch"], row["tokens_per_batch"]) == (2, 64)
    assert row["tokens_per_s"] == pytest.approx(64e3 / row["step_ms"])
    assert row["peak_bytes"] > 0
    assert list(row["start_s"]) == ["imports", "model", "compiling", "first step"]
    assert sum(row["start_s"].values()) == pytest.approx(row["first_step_s"], abs=0.1)


def test_the_llama_is_causal_without_a_mask():
    recipe = load_recipe(RECIPES / "tiny" / "full.yaml", SMALL)
    model = train_peers._llama(recipe, 64, on_gpu=False)
    tokens_BT = torch.arange(64)[None] % 250
    changed_BT = tokens_BT.clone()
    changed_BT[:, 40:] = 0
    given = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: given.append(kwargs["attention_mask"]), with_kwargs=True
        )
    found, other = (model(input_ids=each).logits for each in (tokens_BT, changed_BT))
    torch.testing.assert_close(found[:, :40], other[:, :40])
    assert not torch.allclose(found[:, 41:], other[:, 41:])
    assert given
    assert set(given) == {None}


@pytest.mark.slow
def test_a_compiled_llama_is_measured():
    """In a process of its own, as the command does: torch's compiler cannot start where distutils was imported."""
    settings = [option for each in (*SMALL, "model.layers=full") for option in ("--set", each)]
    peer = ["--peer", "liger-compiled", "--steps", "1", *settings]
    command = processes.command("train_step", [str(RECIPES / "tiny" / "full.yaml"), *peer])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["tokens_per_batch"] == 64
    assert row["tokens_per_s"] == pytest.approx(64e3 / row["step_ms"])


def test_a_llama_of_the_same_sizes_is_measured():
    row = measure_peer(load_recipe(RECIPES / "tiny" / "nsa.yaml", SMALL), compiled=False, steps=1, started=0.0)
    assert row["tokens_per_batch"] == 64
    assert row["tokens_per_s"] == pytest.approx(64e3 / row["step_ms"])


ROW = {
    "name": "tiny",
    "machine": {"device": "NVIDIA H200", "torch": "2.11", "triton": "3.6", "python": "3.12", "date": "2026-11-29"},
    "seq_len": 256,
    "micro_batch": 16,
    "graph": "yes",
    "step_ms": 10.04,
    "tokens_per_s": 408000.0,
    "mfu": 0.123,
    "peak_bytes": 2**31,
    "first_step_s": 20.0,
    "start_s": {"imports": 6.0, "model": 1.5, "compiling": 9.0, "first step": 3.5},
    "parts_ms": {"attention": 3.0, "products": 6.04, "host": 1.0},
}


def test_the_tables(monkeypatch, capsys, tmp_path):
    found = {
        None: ROW,
        "liger": ROW | {"parts_ms": None, "mfu": None, "start_s": None},
        "liger-compiled": {"error": "no compiler"},
    }
    asked = []

    def measured(path, overrides, steps, data, peer, say, devices=1):
        asked.append((path, overrides, peer))
        return found[peer]

    monkeypatch.setattr(train, "_in_a_process", measured)
    file = tmp_path / "report.json"
    assert cli.run(["bench", "train", "r.yaml", "--peers", "--set", "seed=1", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "One NVIDIA H200, torch 2.11, triton 3.6, python 3.12, 2026-11-29." in out
    assert "| tiny | 16 x 256 | yes | 10.0 | 408,000 | 12.3% | 2.0 | 20.0 |" in out
    assert "| tiny: llama + liger | 16 x 256 | yes | 10.0 | 408,000 |  | 2.0 | 20.0 |" in out
    assert "| tiny | 3.0 | 6.0 | 1.0 |" in out
    assert "| | imports | model | compiling | first step |" in out
    assert "| tiny | 6.0 | 1.5 | 9.0 | 3.5 |" in out
    assert "tiny, llama + liger, compiled failed: no compiler" in out
    assert asked[1] == ("r.yaml", ["seed=1", "train.micro_batch=16"], "liger")
    assert [row["name"] for row in json.loads(file.read_text())["rows"]] == ["tiny", "llama + liger"]


def test_the_tables_of_several_devices(monkeypatch, capsys):
    """The command line reaches the process, and the report says what the communication costs."""

    def run(command, **options):
        assert command[command.index("--devices") + 1] == "2"
        row = ROW | {"devices": 2, "hidden_ms": 12.34, "parts_ms": {"communication": 2.5, "products": 6.0, "host": 1.5}}
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps(row) + "\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert cli.run(["bench", "train", "r.yaml", "--devices", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 x NVIDIA H200, torch 2.11" in out
    assert "zoo bench train r.yaml --steps 20 --devices 2" in out
    assert "| tiny, 2 devices | 16 x 256 | yes | 10.0 | 408,000 | 12.3% | 2.0 | 20.0 |" in out
    assert "| tiny, 2 devices | 2.5 | 6.0 | 1.5 |" in out
    assert "- tiny, 2 devices: 12.3 ms" in out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--peers", "--devices", "2"], "--peers measures on one GPU; leave out --devices"),
        (["--devices", "3", *(f"--set={each}" for each in SMALL)], "must be a multiple of the number of processes (3)"),
    ],
)
def test_what_several_devices_cannot_do(options, why, capfd):
    assert cli.run(["bench", "train", str(RECIPES / "tiny" / "full.yaml"), *options]) == 1
    assert why in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["fsdp2", pytest.param("ddp", marks=pytest.mark.long)])
def test_two_processes_are_measured(parallelism, capfd):
    sizes = [f"--set={each}" for each in (*SMALL, "train.batch_size=4", f"train.parallelism={parallelism}")]
    recipe = str(RECIPES / "tiny" / "full.yaml")
    assert cli.run(["bench", "train", recipe, "--steps", "1", "--devices", "2", *sizes]) == 0
    assert "| tiny_full, 2 devices | 2 x 32 |" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and Linux ends the processes of one that was killed")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_no_process_of_several_outlives_the_command(number, tmp_path):
    """`timeout`, a job's end, Ctrl-C: the processes would keep the GPUs."""
    recipe = tmp_path / "here.yaml"
    recipe.write_text(f"name: here\nextends: {RECIPES / 'tiny' / 'full.yaml'}\n")
    sizes = [part for each in (*SMALL, "train.batch_size=4") for part in ("--set", each)]
    words = ["bench", "train", str(recipe), "--devices", "2", "--steps", "100000", *sizes]

    def training() -> int:
        found = [each.read_bytes() for each in Path("/proc").glob("[0-9]*/cmdline") if _readable(each)]
        return sum(b"train_step" in line and str(recipe).encode() in line for line in found)

    with subprocess.Popen([sys.executable, "-m", "zoo", *words], stderr=subprocess.DEVNULL) as command:
        _until(lambda: training() == 3, 60)  # the launcher and two that train
        time.sleep(8)  # imports, and some batches
        command.send_signal(number)
        command.wait(30)
    _until(lambda: training() == 0, 20)


def _readable(file: Path) -> bool:
    try:
        return bool(file.read_bytes())
    except OSError:  # it has ended
        return False


def _until(holds, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_broken_recipe_is_one_line(capsys):
    assert cli.run(["bench", "train", "nowhere.yaml"]) != 0
    err = capsys.readouterr().err
    assert "bench train: nowhere.yaml:" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("micro_batch", "fits"), [(4, False), (2, True), (1, True)])
def test_a_peer_says_whether_its_rows_fit(micro_batch, fits):
    weight = torch.ones(1, requires_grad=True)

    def forward(input_ids, **_):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return SimpleNamespace(loss=(weight * input_ids).mean())

    assert _add_gradients(forward, torch.full((4, 3), 5), micro_batch) is fits
    assert (weight.grad is not None) is fits
    if fits:
        torch.testing.assert_close(weight.grad, torch.tensor([5.0]))  # the mean over all rows


def test_a_peer_of_which_not_even_a_row_fits_fails():
    def forward(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        _add_gradients(forward, torch.zeros(2, 3), 1)
