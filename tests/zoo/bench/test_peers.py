"""Other people's kernels, played by our own references: what `zoo bench kernels --peers` hands them, and what fails."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from zoo import kernels
from zoo.bench import kernels as bench
from zoo.bench import peers, report
from zoo.bench.cases import Case, Inputs, Setting

SETTING = Setting(4, 2, 16, n_selected=4)
SHARED = Setting(4, 2, 16, n_selected=4, query_group=4)
SETTINGS = [("plain", SETTING), ("rotary", Setting(4, 2, 16, 8, n_selected=4))]
T = 300


def modules(monkeypatch, **found):
    """Make `import a.b` find these: {"a__b": {"name": object}}."""
    for name, members in found.items():
        parts = name.split("__")
        for i in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        vars(sys.modules[".".join(parts)]).update(members)


def select(q, k, v, chosen_KTS, block):
    """[T, H, D] of what a peer is handed, by our reference."""
    chosen = chosen_KTS.transpose(0, 1)[None].contiguous()
    return kernels.selection_attention(q[None], k[None], v[None], chosen, selection_block=block)[0]


def compress(q, k, v, block, stride):
    """Our slots are one for every start, theirs one for every block that ends in the row."""
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, kernels.n_slots(len(q), stride) - len(x))) for x in (k, v))
    return kernels.compression_attention(q[None], k[None], v[None], block=block, stride=stride)


def outputs_and_gradients(case: Case):
    o = case.call()
    return o.reshape(-1), *torch.autograd.grad(o, case.leaves, torch.ones_like(o))


def same(found: Case, ours: Case):
    """Ours have a slot for every start, so that the last ones of their gradients are zeros."""
    for x, y in zip(outputs_and_gradients(found), outputs_and_gradients(ours), strict=True):
        assert torch.equal(x.flatten(), y.flatten()[: x.numel()])
        assert not y.flatten()[x.numel() :].any()
    assert found.flops == ours.flops
    assert found.bytes == pytest.approx(ours.bytes, rel=0.01)


def by_name(found: list[Case]) -> dict[str, Case]:
    return {case.operation: case for case in found}


@pytest.mark.parametrize("setting", [SETTING, SHARED], ids=["every query", "groups of 4"])
def test_sf_nsa(setting, monkeypatch):
    told = {}
    helper = SimpleNamespace(
        set_hyperparameters=lambda **settings: told.update(settings),
        init_cu_seqlens=lambda ends: told.update(ends=ends.tolist()),
    )

    def select_attn(q, k, v, chosen_KTS):
        n_blocks = -(-T // told["block_size"])
        assert chosen_KTS.is_contiguous()
        assert chosen_KTS.dtype == torch.int32
        assert chosen_KTS.shape == (2, T, told["top_n"])
        assert int(chosen_KTS.max()) == n_blocks
        return select(q, k, v, chosen_KTS.masked_fill(chosen_KTS == n_blocks, -1), told["block_size"])

    def compress_attn(q, k, v):
        o, lse = compress(q, k, v, told["kernel_size"], told["stride"])
        return o[0], lse

    def slc_topk_indices(q, k, lse, **options):
        assert not lse.requires_grad
        assert len(k) == (T - 32) // 16 + 1
        return torch.zeros(2, T, told["top_n"]), None

    modules(
        monkeypatch,
        flash_nsa__utils={"NSAHelper": helper},
        flash_nsa__ops__select_attn={"select_attn": select_attn},
        flash_nsa__ops__compress_attn={"compress_attn": compress_attn},
        flash_nsa__ops__topk={"slc_topk_indices": slc_topk_indices},
    )
    inputs = Inputs(setting, T, "cpu")
    found, ours = by_name(peers._sf_nsa(inputs)), by_name(bench.cases(inputs))
    assert told["ends"] == [0, T]
    assert helper.x_cu_seqlens is None
    assert (told["num_init_blocks"], told["num_local_blocks"], told["window_size"]) == (1, 2, 512)
    same(found["selection, SF-NSA"], ours["selection"])
    same(found["compression, SF-NSA"], ours["compression"])
    if setting is SHARED:  # it has a choice for every query
        assert "choice, SF-NSA" not in found
    else:
        assert found["choice, SF-NSA"].call().shape == (2, T, 4)
    assert all(case.peer_of == name.partition(",")[0] for name, case in found.items())


@pytest.mark.parametrize("setting", [SETTING, SHARED], ids=["every query", "groups of 4"])
def test_x_nsa(setting, monkeypatch):
    def topk_sparse_attention(q, k, v, chosen_KTS, block, ends):
        assert chosen_KTS.dtype == ends.dtype == torch.int32
        assert ends.tolist() == [0, T]
        return select(q, k, v, chosen_KTS, block)

    def compressed_attention(q, k, v, kernel_size, kernel_stride, block_size, topk, ends, pooled_ends, *longest):
        assert (topk, pooled_ends.tolist(), longest) == (0, [0, len(k)], (T, len(k)))
        return compress(q, k, v, kernel_size, kernel_stride)[0][0], None

    modules(
        monkeypatch,
        native_sparse_attention__ops__triton__compressed_attention={"compressed_attention": compressed_attention},
        native_sparse_attention__ops__triton__topk_sparse_attention={"topk_sparse_attention": topk_sparse_attention},
    )
    inputs = Inputs(setting, T, "cpu")
    found, ours = by_name(peers._x_nsa(inputs)), by_name(bench.cases(inputs))
    same(found["selection, X-NSA"], ours["selection"])
    same(found["compression, X-NSA"], ours["compression"])


PEERS = {"flash_nsa": peers._sf_nsa, "native_sparse_attention": peers._x_nsa, "fla": peers._fla}


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_refuses_a_setting_is_not_asked(name, monkeypatch):
    """Blocks of 16 tokens, groups of 2 heads: an import would raise."""
    monkeypatch.setattr("builtins.__import__", lambda *_: pytest.fail("was asked"))
    inputs = SimpleNamespace(setting=Setting(4, 2, 16, selection_block=16), tensors=None)
    assert PEERS[name](inputs) == []


def timed(monkeypatch, *making):
    """The report of a setting whose peers are these, each made by a function, and what was said."""
    said, found = [], {"rows": [], "failed": []}
    monkeypatch.setattr(bench, "Inputs", lambda setting, seq_len, device: None)
    monkeypatch.setattr(bench, "cases", lambda inputs: [Case("ours", int, [], (1, 0), (1, 0))])
    monkeypatch.setattr(bench, "peer_cases", lambda inputs: [(f"peer {i}", make) for i, make in enumerate(making)])
    monkeypatch.setattr(bench, "_median_ms", lambda call: call() is None or 1.0)
    return found, said, bench._time_setting(found, "P", 64, True, False, said.append)


def fails():
    raise RuntimeError("no such tile\nand more")


def test_a_peer_that_fails_is_named_and_the_others_are_timed(monkeypatch):
    monkeypatch.setattr(bench, "_see_that_kernels_run", lambda: None)
    theirs = [Case("x", int, [], (1, 0), (1, 0), "ours"), Case("selection, y", fails, [], (1, 0), (1, 0), "ours")]
    found, said, parts = timed(monkeypatch, fails, lambda: theirs, lambda: [Case("z", int, [], (1, 0), (1, 0), "ours")])
    saved = [[row["operation"] for row in found["rows"]] for _ in parts]
    assert saved[0] == ["ours"]  # before any peer runs
    assert saved[-1] == ["ours", "x", "z"]
    assert said == ["peer 0 failed: RuntimeError: no such tile", "selection, y failed: RuntimeError: no such tile"]
    machine = dict.fromkeys(("gpu", "torch", "triton", "cuda", "python", "date"), "?")
    found |= {"machine": machine, "ceilings": {"tflops": 1.0, "tb_s": 1.0}, "pair": [], "memory": [], "command": ""}
    assert "selection, y failed, P at 64 tokens: RuntimeError: no such tile" in report.as_markdown(found)


def test_of_a_peer_that_is_not_installed_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_nsa", None)
    inputs = Inputs(SETTING, T, "cpu")
    found, said, parts = timed(monkeypatch, lambda: peers._sf_nsa(inputs))
    assert len(list(parts)) == 2
    assert (found["failed"], len(found["rows"])) == ([], 1)
    assert len(said) == 1
    assert said[0].startswith("peer 0 is not timed: ")
    assert "flash_nsa" in said[0]


def test_after_a_peer_that_takes_the_gpu_along_the_report_is_what_there_is(monkeypatch):
    timed(monkeypatch, fails, lambda: pytest.fail("was asked"))
    monkeypatch.setattr(torch.cuda, "empty_cache", fails)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench, "machine", dict)
    monkeypatch.setattr(bench, "_ceilings", dict)
    saved = []
    found = bench.measure(
        ["P"], [64], peers=True, command="", say=str, save=lambda report: saved.append(len(report["failed"]))
    )
    assert saved == [0, 1]
    assert [row["operation"] for row in found["rows"]] == ["ours"]
    said = "RuntimeError: no such tile (and no kernel runs after it: the rest was not measured)"
    assert found["failed"] == [{"setting": "P", "seq_len": 64, "peer": "peer 0", "error": said}]


def test_all_peers_but_where_keys_have_a_rotary_part():
    of = {name: [whose for whose, _ in peers.peer_cases(Inputs(setting, 64, "cpu"))] for name, setting in SETTINGS}
    assert of == {"plain": ["fla", "X-NSA", "torch", "cuDNN", "SF-NSA"], "rotary": []}
