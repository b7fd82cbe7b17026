"""`zoo show --kernels`, and the tables of `zoo bench kernels`, on a machine without a GPU."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import zoo
from zoo import cli
from zoo.bench import kernels as bench_kernels
from zoo.bench import report
from zoo.bench.cases import GLOBAL, SETTINGS, Inputs, Setting, Tensors, cases
from zoo.bench.peers import peer_cases
from zoo.cli import serving
from zoo.errors import ZooError
from zoo.kernels import selection_attention, use_implementation

RECIPES = Path(__file__).parents[2] / "recipes"
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


@no_gpu
@pytest.mark.parametrize("path", ["340m/ansa", "340m/nsa", "340m/full", "340m/mla", "tiny/window"])
def test_every_operation_is_named_with_a_reason(path):
    recipe = zoo.load_recipe(RECIPES / f"{path}.yaml")
    found = serving.kernels_of(recipe)
    layers = sorted(layer for entry in found for layer in entry["layers"])
    assert layers == list(range(len(recipe.model.expanded())))
    for entry in found:
        assert entry["operations"]
        for op, impl, why in entry["operations"]:
            assert impl == "reference" or (op in ("full_attention", "selection_attention") and impl == "sdpa")
            assert "the tensors are on cpu" in why or op == "full_attention"


@no_gpu
def test_operations_of_feed_forwards_are_named_too():
    dense, experts = serving.kernels_of(zoo.load_recipe(RECIPES / "moe/tiny.yaml"))
    assert (dense["block"], dense["layers"]) == ("full, swiglu 352", [0])
    assert (experts["block"], experts["layers"]) == ("full, moe 2 of 8 x 88, 1 shared", [1, 2, 3])
    assert [op for op, _, _ in dense["operations"]][-1] == "swiglu_mlp"
    assert {op for op, _, _ in experts["operations"]} >= {"full_attention", "grouped_linear", "swiglu_mlp"}


def test_the_recipe_key_forces_the_reference():
    recipe = zoo.load_recipe(RECIPES / "tiny/full.yaml", overrides=["train.kernels=reference"])
    operations = [operation for entry in serving.kernels_of(recipe) for operation in entry["operations"]]
    assert "full_attention" in [operation for operation, _, _ in operations]
    assert {(impl, why) for _, impl, why in operations} == {("reference", "asked for by train.kernels")}


@no_gpu
def test_commands_without_a_gpu(capsys):
    assert cli.run(["show", "--kernels", str(RECIPES / "tiny/ansa.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "no CUDA GPU here" in shown
    assert "ansa.local  (layers 0, 2)" in shown
    assert cli.run(["bench", "kernels"]) == 1
    assert capsys.readouterr().err == "bench kernels: needs a CUDA GPU; torch finds none here.\n"
    assert cli.run(["bench", "kernels", "--help"]) == 0
    assert "(A64, A, pair)" in capsys.readouterr().out
    assert cli.run(["bench", "kernels", "--config", "Q"]) == 2
    assert "must be one of P, P64, P4, A64," in capsys.readouterr().err
    with pytest.raises(ZooError, match="unknown setting 'Q'; known: P, P64, P4, A64"):
        bench_kernels.measure(["Q"], [256], peers=False, command="")


@pytest.mark.parametrize("arguments", [["show", "quickstart.yaml"], ["train", "quickstart.yaml"], ["bench", "kernels"]])
def test_a_wrong_environment_variable_is_told_at_once(arguments, monkeypatch, capsys):
    monkeypatch.setenv("ZOO_KERNELS", "refrence")
    assert cli.run(arguments) == 2
    assert "Invalid value for ZOO_KERNELS: must be auto or reference; found 'refrence'." in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting", [Setting(4, 2, 16, 8, 16, 16, 16, 4, 4, 64), Setting(2, 1, 16, 0, 8, 4, 16, 3, 1, 32)]
)
def test_cases_run_and_count(setting):
    """FLOPs by hand at 64 tokens; every case differentiates into its leaves."""
    found = {case.operation: case for case in cases(Inputs(setting, 64, "cpu"))}
    qk, v = setting.head_dim + setting.rope_dim, setting.head_dim
    pairs = 64 * 65 // 2
    assert found["full"].flops == (
        2 * setting.n_heads * pairs * (qk + v),
        2 * setting.n_heads * pairs * (3 * qk + 2 * v),
    )
    for case in found.values():
        output = case.call()
        assert min(case.bytes[: 1 + bool(case.leaves)]) > 0
        if case.leaves:
            assert all(g is not None for g in torch.autograd.grad(output, case.leaves, torch.ones_like(output)))
    tensors = Tensors(setting, 64, "cpu")
    layer = tensors.global_layer()
    grads = torch.autograd.grad(layer, [*tensors.leaves, tensors.logits], torch.ones_like(layer))
    assert all(grad.any() for grad in grads)


def test_the_committed_tables_are_those_of_their_json(tmp_path):
    folder = RECIPES.parent / "docs/benchmarks"
    for name in ("kernels_nsa", "kernels_ansa", "kernels_peers", "kernels_small_groups"):
        found = json.loads((folder / f"{name}.json").read_text())
        assert report.as_markdown(found) in (folder / f"{name}.md").read_text()
        report.plot(found, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def stand_in_for_cudnn() -> SimpleNamespace:
    """cuDNN's selection as its documentation has it, by our reference: of each query the first `counts` blocks."""

    def selection(q, k, v, blocks_TKS, counts_TK, ends, ends_k, *, block_size, scale_softmax, is_causal, **lengths):
        assert is_causal
        assert ends.tolist() == ends_k.tolist() == [0, len(q)]
        assert set(lengths.values()) == {len(q)}
        place = torch.arange(blocks_TKS.shape[-1])
        chosen = torch.where(place < counts_TK[..., None], blocks_TKS, -1)[None]
        options = {"selection_block": block_size, "scale": scale_softmax, "impl": "reference"}
        return {"o_tensor": selection_attention(q[None], k[None], v[None], chosen, **options)[0]}

    return SimpleNamespace(__version__="1.32.0", NSA=SimpleNamespace(selection_attention_wrapper=selection))


@pytest.mark.parametrize("query_group", [1, 4])
def test_cudnn_is_given_what_ours_chose(query_group, monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", stand_in_for_cudnn())
    inputs = Inputs(Setting(4, 2, 16, 0, 16, 16, 16, 3, query_group), 70, "cpu")
    (case,) = dict(peer_cases(inputs))["cuDNN"]()
    with use_implementation("reference"):
        ours = {case.operation: case for case in cases(inputs)}["selection"].call()
    assert case.leaves == []  # it has no backward pass
    torch.testing.assert_close(case.call(), ours.detach())


def test_peers_are_counted_as_what_they_stand_beside(monkeypatch):
    """fla takes groups of 16, 32, ... heads, and its compression has the grid of selection; none has a rotary part."""
    pytest.importorskip("fla")
    monkeypatch.setitem(sys.modules, "cudnn", stand_in_for_cudnn())

    def peers(*sizes: int) -> dict[str, str]:
        inputs = Inputs(Setting(*sizes), 64, "cpu")
        ours = {case.operation: case for case in cases(inputs)}
        found = [case for _, make in peer_cases(inputs) for case in make()]
        for case in found:
            assert case.flops == ours[case.peer_of].flops
            assert case.bytes == ours[case.peer_of].bytes
        return {case.operation.partition(" 0.")[0]: case.peer_of for case in found}

    torchs = {"full, torch flash": "full", "window, torch flex": "window"}
    torchs["selection, forward alone, cuDNN 1.32.0"] = "selection"
    fla = {f"{name}, fla": name for name in ("selection", "compression", "choice")}
    assert peers(32, 2, 16, 0, 16, 16, 16, 3) == {**torchs, **fla}
    assert peers(32, 2, 16, 0, 16, 16, 16, 3, 4) == {**torchs, "selection, fla": "selection"}
    assert peers(32, 2, 16, 0, 16, 8, 16, 3) == {**torchs, "selection, fla": "selection"}
    assert peers(24, 2, 16, 0, 16, 16, 16, 3) == peers(8, 2, 16, 0, 16, 16, 16, 3) == torchs
    assert peers(32, 2, 16, 8, 16, 16, 16, 3) == {}


def test_a_pair_alone_can_be_plotted(tmp_path):
    found = json.loads((RECIPES.parent / "docs/benchmarks/kernels_ansa.json").read_text())
    report.plot({**found, "rows": []}, tmp_path / "pair.png")
    assert (tmp_path / "pair.png").stat().st_size > 10_000


def test_tables_with_graphs():
    """Ratios of graph to graph, and empty cells where there was none."""
    row = {"setting": "A", "seq_len": 512, "peer_of": None, "flops": [1.0, 1.0], "bytes": [1.0, 1.0]}
    times = {"forward_ms": 1.0, "backward_ms": 2.0}
    rows = [
        {**row, **times, "operation": "full", "graph_ms": 3.0},
        {**row, **times, "operation": "window", "graph_ms": 0.5},
        {**row, "forward_ms": 1.0, "backward_ms": None, "operation": "choice", "graph_ms": 0.25},
    ]
    lines = list(report._table(rows, {"tflops": 1.0, "tb_s": 1.0}))
    assert [line.split("|")[-3:-1] for line in lines[2:]] == [
        [" 3.000 ", " 1.0x "],
        [" 0.500 ", " 6.0x "],
        [" 0.250 ", "  "],
    ]
    assert len({line.count("|") for line in lines}) == 1


def test_settings_are_those_of_the_recipes():
    """The pair that is timed is the 340M ansa recipe's."""
    config = zoo.load_recipe(RECIPES / "ansa_340m.yaml").model.blocks["ansa"]
    names = ("n_heads", "n_kv_heads", "rope_dim", "compression_block", "compression_stride", "selection_block")
    for name in (*names, "n_selected", "query_group", "window"):
        assert getattr(GLOBAL, name) == getattr(config, name), name
    assert SETTINGS["A"].selection_block == 16
