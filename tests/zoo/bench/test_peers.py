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
    for x, y in zip(outputs_and_gradients(found), outputs_and_gradients(ours), strict=True):
        assert torch.equal(x.reshape(y.shape), y)
    assert (found.flops, found.bytes) == (ours.flops, ours.bytes)


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
    monkeypatch.setattr(inputs, "pooled", [*inputs.pooled[:2], None])
    o, dq, *_ = outputs_and_gradients(found["compression, SF-NSA"])
    expected = outputs_and_gradients(ours["compression"])
    assert torch.equal(o, expected[0])
    assert torch.equal(dq, expected[1])
    assert found["choice, SF-NSA"].call().shape == (2, T, 4)
    assert {case.peer_of for case in found.values()} == {"selection", "compression", "choice"}


@pytest.mark.parametrize("setting", [SETTING, SHARED], ids=["every query", "groups of 4"])
def test_x_nsa(setting, monkeypatch):
    def topk_sparse_attention(q, k, v, chosen_KTS, block, ends):
        assert chosen_KTS.dtype == ends.dtype == torch.int32
        assert ends.tolist() == [0, T]
        return select(q, k, v, chosen_KTS, block)

    def compressed_attention(q, k, v, kernel_size, kernel_stride, block_size, topk, ends, pooled_ends):
        assert topk == 0
        assert pooled_ends.tolist() == [0, len(k)]
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


@pytest.mark.parametrize("peer", [peers._sf_nsa, peers._x_nsa])
def test_a_peer_that_refuses_or_is_not_installed_has_no_row(peer):
    inputs = Inputs(SETTING, T, "cpu")
    assert peer(inputs) == []
    small = Setting(4, 2, 16, compression_block=16, selection_block=16, n_selected=4)
    assert peer(Inputs(small, 64, "cpu")) == []


def test_a_peer_that_fails_is_named_and_the_others_are_timed(monkeypatch):
    said, found = [], {"rows": [], "failed": []}

    def fails():
        raise RuntimeError("no such tile\nand more")

    def peer_cases(inputs):
        tensor = inputs.tensors.q
        return [
            Case("selection, theirs", fails, [], (1, 0), (1, 0), "selection"),
            Case("x", tensor.sum, [], (1, 0), (1, 0)),
        ]

    monkeypatch.setattr(bench, "Inputs", lambda setting, seq_len, device: Inputs(SETTING, 64, "cpu"))
    monkeypatch.setattr(bench, "cases", lambda inputs: [])
    monkeypatch.setattr(bench, "peer_cases", peer_cases)
    monkeypatch.setattr(bench, "_median_ms", lambda call: call() is None or 1.0)
    bench._time_setting(found, "P", 64, True, False, said.append)
    assert [row["operation"] for row in found["rows"]] == ["x"]
    assert said == ["selection, theirs failed: RuntimeError: no such tile"]
    found |= {"machine": {}, "ceilings": {"tflops": 1.0, "tb_s": 1.0}, "pair": [], "memory": [], "command": ""}
    found["machine"] = dict.fromkeys(("gpu", "torch", "triton", "cuda", "python", "date"), "?")
    text = "Failed, P at 64 tokens: selection, theirs: RuntimeError: no such tile"
    assert text in report.as_markdown(found)
