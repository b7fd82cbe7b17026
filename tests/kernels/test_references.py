"""Every operation against the naive loops, over a grid of shapes, alone in the row and packed."""

from dataclasses import dataclass, replace

import pytest
import torch

from zoo import kernels


@dataclass(frozen=True)
class Case:
    rows: tuple[tuple[int, ...], ...]  # lengths of the documents of each row; one length = documents=None
    H: int = 2
    K: int = 1
    D: int = 4
    V: int = 4
    R: int = 0
    block: int = 8
    stride: int = 4
    selection_block: int = 8
    n_selected: int = 4
    query_group: int = 1
    window: int = 5
    scale: float | None = None


CASES = {
    "one token": Case(rows=((1,),)),
    "shorter than every block": Case(rows=((3,), (3,)), R=2, query_group=4),
    "ragged, rotary, wide values": Case(rows=((37,), (37,)), R=2, V=6, query_group=2),
    "heads 1:1": Case(rows=((29,),), H=2, K=2, D=6, V=3, block=4, stride=4, selection_block=4, n_selected=3),
    "heads 3:1": Case(rows=((41,),), H=3, K=1, block=4, stride=2, query_group=4, window=33),
    "heads 4:1": Case(rows=((40,),), H=8, K=2, R=4, query_group=4, n_selected=3, scale=0.7),
    "overlap of four": Case(rows=((50,),), H=4, K=2, block=16, stride=4, selection_block=8, window=1),
    "window wider than row": Case(rows=((19,),), window=64, n_selected=9),
    "documents": Case(rows=((9, 28), (37,)), H=4, K=2, R=2, V=6),
    "short documents": Case(rows=((1, 1, 5, 3, 17, 1, 9), (30, 1, 6)), H=3, K=1, query_group=2, block=4),
    "groups cut by documents": Case(rows=((7, 18, 9, 7), (41,)), R=2, H=4, K=2, query_group=4, n_selected=3),
    "documents of one token": Case(rows=((1,) * 11,), query_group=4),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


class Inputs:
    """Random tensors of a case; `documents()` yields each document alone, as (row, tokens, tensors)."""

    def __init__(self, case: Case, randn, pack):
        self.case = case
        batch, seq_len = len(case.rows), sum(case.rows[0])
        shapes = {"q": (case.H, case.D), "k": (case.K, case.D), "v": (case.K, case.V)}
        if case.R:
            shapes |= {"q_rope": (case.H, case.R), "k_rope": (case.R,)}
        self.tensors = {"q_rope": None, "k_rope": None}
        self.tensors |= {name: randn(batch, seq_len, *shape) for name, shape in shapes.items()}
        packed = any(len(lengths) > 1 for lengths in case.rows)
        self.options = {"documents": pack([list(lengths) for lengths in case.rows]) if packed else None}

    def __getattr__(self, name):
        return self.tensors[name]

    def grid(self) -> dict[str, int]:
        return {"block": self.case.block, "stride": self.case.stride}

    def rotary(self, suffix="") -> dict:
        return {"q_rope": self.q_rope, "k_rope" + suffix: self.k_rope, "scale": self.case.scale}

    def pooled(self) -> dict:
        names = [name for name in ("k", "v", "k_rope") if self.tensors[name] is not None]
        return {name: kernels.mean_pool(self.tensors[name], **self.grid(), **self.options) for name in names}

    def documents(self):
        for row, lengths in enumerate(self.case.rows):
            start = 0
            for length in lengths:
                part = slice(start, start + length)
                yield row, part, {n: None if x is None else x[row, part] for n, x in self.tensors.items()}
                start += length


@pytest.fixture
def inputs(case, randn, pack, chunked):
    return Inputs(case, randn, pack)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_full_attention(inputs, naive):
    for impl in ["reference"] if inputs.options["documents"] else ["reference", "sdpa"]:
        o = kernels.full_attention(inputs.q, inputs.k, inputs.v, **inputs.rotary(), **inputs.options, impl=impl)
        for row, part, one in inputs.documents():
            expected, _ = naive.attention(sees=lambda t, g: naive.full(t), **one, scale=inputs.case.scale)
            assert_close(o[row, part], expected)


def test_window_attention(inputs, naive):
    w = inputs.case.window
    o = kernels.window_attention(inputs.q, inputs.k, inputs.v, window=w, **inputs.rotary(), **inputs.options)
    for row, part, one in inputs.documents():
        expected, _ = naive.attention(sees=lambda t, g: naive.window(t, w), **one, scale=inputs.case.scale)
        assert_close(o[row, part], expected)


@pytest.mark.parametrize("name", ["k", "flat"])
def test_pooling(inputs, naive, name):
    """Blocks of a document lie in its slots, in order; every other slot is zero."""
    x = inputs.k if name == "k" else inputs.k[:, :, 0]
    block, stride = inputs.case.block, inputs.case.stride
    pooled = kernels.mean_pool(x, **inputs.grid(), **inputs.options)
    gathered = kernels.gather_blocks(x, **inputs.grid(), **inputs.options)
    expected = torch.zeros_like(pooled)
    assert pooled.shape[:2] == (x.shape[0], kernels.n_slots(x.shape[1], stride))
    for row, part, _ in inputs.documents():
        blocks = naive.pool(x[row, part], block, stride)
        first = part.start // stride
        expected[row, first : first + len(blocks)] = blocks
        for j in range(len(blocks)):
            token = part.start + j * stride
            assert torch.equal(gathered[row, first + j], x[row, token : token + block])
    assert_close(pooled, expected)
    assert torch.equal(gathered.abs().amax(2) == 0, pooled == 0)


def test_compression_attention(inputs, naive):
    pooled = inputs.pooled()
    o, lse = kernels.compression_attention(
        inputs.q, pooled["k"], pooled["v"], **inputs.grid(), **inputs.options,
        q_rope=inputs.q_rope, k_rope=pooled.get("k_rope"), scale=inputs.case.scale,
    )  # fmt: skip
    assert lse.dtype == torch.float64
    for row, part, one in inputs.documents():
        for name in pooled:
            one[name] = naive.pool(one[name], inputs.case.block, inputs.case.stride)
        sees = lambda t, g: naive.compressed(t, inputs.case.block, inputs.case.stride)  # noqa: E731
        expected, expected_lse = naive.attention(sees=sees, **one, scale=inputs.case.scale)
        assert_close(o[row, part], expected)
        assert_close(lse[row, part], expected_lse)


def choose(inputs, n_init=1, n_local=2):
    pooled, case = inputs.pooled(), inputs.case
    rotary = {"q_rope": inputs.q_rope, "k_rope": pooled.get("k_rope"), "scale": case.scale}
    _, lse = kernels.compression_attention(
        inputs.q, pooled["k"], pooled["v"], **inputs.grid(), **inputs.options, **rotary
    )
    return kernels.choose_blocks(
        inputs.q, pooled["k"], lse, compression_block=case.block, compression_stride=case.stride,
        selection_block=case.selection_block, n_selected=case.n_selected, query_group=case.query_group,
        n_init=n_init, n_local=n_local, **inputs.options, **rotary,
    )  # fmt: skip


def naive_choice(inputs, naive, n_init=1, n_local=2):
    """Yields (row, group, kv head, list of blocks), groups counted in row order."""
    case, group = inputs.case, {}
    for row, _, one in inputs.documents():
        pooled = {n: naive.pool(one[n], case.block, case.stride) for n in ("k", "k_rope") if one[n] is not None}
        chosen = naive.choose(
            one["q"], pooled["k"], case.block, case.stride, case.selection_block, case.n_selected, n_init, n_local,
            case.query_group, one["q_rope"], pooled.get("k_rope"), case.scale,
        )  # fmt: skip
        for per_head in chosen:
            for head, blocks in enumerate(per_head):
                yield row, group.get(row, 0), head, blocks
            group[row] = group.get(row, 0) + 1


@pytest.mark.parametrize(("n_init", "n_local"), [(1, 2), (0, 1), (0, 0), (2, 1)])
def test_choose_blocks(inputs, naive, n_init, n_local):
    chosen = choose(inputs, n_init, n_local)
    batch, seq_len = inputs.q.shape[:2]
    groups = kernels.n_groups(seq_len, inputs.case.query_group, inputs.options["documents"])
    expected = torch.full((batch, groups, inputs.case.K, inputs.case.n_selected), -1, dtype=torch.int32)
    for row, group, head, blocks in naive_choice(inputs, naive, n_init, n_local):
        expected[row, group, head, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
    assert torch.equal(chosen, expected)


def test_selection_attention(inputs, naive):
    case = inputs.case
    tensors = inputs.q, inputs.k, inputs.v, choose(inputs)
    options = {"selection_block": case.selection_block, "query_group": case.query_group}
    options |= {**inputs.rotary(), **inputs.options}
    o = kernels.selection_attention(*tensors, **options, impl="reference")
    if not inputs.options["documents"]:
        assert_close(kernels.selection_attention(*tensors, **options, impl="sdpa"), o)
    blocks = {(row, group, head): chosen for row, group, head, chosen in naive_choice(inputs, naive)}
    group_before = dict.fromkeys(range(len(case.rows)), 0)
    for row, part, one in inputs.documents():

        def sees(t, head, row=row):
            group = group_before[row] + t // case.query_group
            return naive.selected(t, blocks[row, group, head], case.selection_block)

        assert_close(o[row, part], naive.attention(sees=sees, **one, scale=case.scale)[0])
        group_before[row] += -(-(part.stop - part.start) // case.query_group)


def test_selection_attention_with_empty_places(naive, randn, chunked):
    """A query whose places are all empty yields zeros; an empty place beside others hides nothing but itself."""
    q, k, v = randn(1, 8, 2, 4), randn(1, 8, 1, 4), randn(1, 8, 1, 4)
    places = [[0, -1], [-1, -1], [0, 1], [-1, 1]]
    chosen = torch.tensor(places, dtype=torch.int32).view(1, 4, 1, 2)
    sees = lambda t, g: naive.selected(t, [m for m in places[t // 2] if m >= 0], 4)  # noqa: E731
    for impl in ("reference", "sdpa"):
        o = kernels.selection_attention(q, k, v, chosen, selection_block=4, query_group=2, impl=impl)
        assert_close(o[0], naive.attention(q[0], k[0], v[0], sees)[0])
        assert not o[:, 2:4].any()


def test_gated_sum(randn):
    outputs = [randn(2, 3, 4, 5) for _ in range(3)]
    logits = randn(2, 3, 4, 3)
    total = kernels.gated_sum(outputs, logits)
    for b, t, h in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        expected = sum(outputs[p][b, t, h] / (1 + (-logits[b, t, h, p]).exp()) for p in range(3))
        assert_close(total[b, t, h], expected)


@pytest.mark.parametrize("case", [replace(CASES["documents"], query_group=q) for q in (1, 2, 4)])
def test_low_precision_stays_near(case, randn, pack):
    """bfloat16 inputs: computed in float32, so that only the rounding of inputs and output is left."""
    inputs = Inputs(case, randn, pack)
    low = {name: None if x is None else x.bfloat16() for name, x in inputs.tensors.items()}
    high = {name: None if x is None else x.double() for name, x in low.items()}
    o_low, o_high = (
        kernels.window_attention(
            x["q"], x["k"], x["v"], q_rope=x["q_rope"], k_rope=x["k_rope"], window=5, **inputs.options
        )
        for x in (low, high)
    )
    assert o_low.dtype == torch.bfloat16
    torch.testing.assert_close(o_low.double(), o_high, rtol=2**-8, atol=1e-6)
