"""Selection attention in Triton against the float64 reference: the output and every gradient."""

import importlib.util
import math
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from zoo.kernels import Documents, selection_attention


@dataclass(frozen=True)
class Case:
    rows: tuple[tuple[int, ...], ...]  # lengths of the documents of each row; one length = documents=None
    H: int = 2
    K: int = 1
    D: int = 16
    V: int = 16
    R: int = 0
    block: int = 16
    n_selected: int = 2
    query_group: int = 1
    scale: float | None = None


SMALL = {
    "one token": Case(rows=((1,),), n_selected=3),
    "shorter than a block": Case(rows=((5,), (5,)), H=3, query_group=4, block=32),
    "groups of 3 heads, rotary": Case(rows=((37,), (37,)), H=6, K=2, V=32, R=16, n_selected=3, query_group=4),
    "more heads than a tile has rows": Case(rows=((19,),), H=20, D=24, query_group=4),
    "one head a key head": Case(rows=((50,),), H=2, K=2, query_group=2, n_selected=3, scale=0.3),
    "blocks of 64": Case(rows=((131,),), block=64, query_group=4),
    "blocks of 128": Case(rows=((140,),), block=128, query_group=8),
    "documents": Case(rows=((9, 28), (37,)), H=4, K=2, R=16, V=32, n_selected=2, query_group=2),
    "heads 256 wide": Case(rows=((40,),), H=4, D=256, V=192, R=32, query_group=4),
    "more places than blocks": Case(rows=((260,),), n_selected=128, query_group=16),
    "short documents": Case(rows=((1, 1, 5, 3, 17, 1, 9), (30, 1, 6)), H=3, query_group=4),
}
REAL = {
    "the published setting": Case(rows=((2048,),), H=64, K=4, D=128, V=128, block=64, n_selected=16),
    "the published setting, shared": Case(
        rows=((2000,),), H=64, K=4, D=128, V=128, block=64, n_selected=16, query_group=4
    ),
    "ansa": Case(rows=((1500,), (1500,)), H=16, K=4, D=64, V=64, R=32, n_selected=32, query_group=4),
    "ansa, packed": Case(rows=((1, 700, 799), (1500,)), H=16, K=4, D=64, V=64, R=32, n_selected=24, query_group=4),
    "ansa, rows of any length": Case(rows=((1501,),), H=16, K=4, D=64, V=64, R=32, n_selected=32, query_group=4),
    "ansa at 1.3B": Case(rows=((1200,),), H=16, K=4, D=128, V=128, R=64, n_selected=32, query_group=4),
    "ansa without a rotary part": Case(rows=((1500,), (1500,)), H=16, K=4, D=64, V=64, n_selected=32, query_group=4),
    "the same, packed": Case(rows=((3, 800, 700), (1503,)), H=16, K=4, D=64, V=64, n_selected=32, query_group=4),
    "groups of 12 rows": Case(rows=((1100,),), H=12, K=4, D=64, V=64, n_selected=20, query_group=4),
    "32 rows a group": Case(rows=((1030,),), H=32, K=4, D=64, V=64, n_selected=20, query_group=4),
    "64 wide rows a group, rotary": Case(
        rows=((900,), (900,)), H=64, K=4, D=128, V=128, R=32, n_selected=20, query_group=4
    ),
    "16 heads a key head": Case(rows=((900,),), H=16, K=1, D=64, V=64, n_selected=20),
    "16 heads a key head, blocks of 32": Case(rows=((900,),), H=16, K=1, D=64, V=64, block=32, n_selected=9),
    "many heads": Case(rows=((600,),), H=64, K=1, D=64, V=128, block=32, n_selected=8, query_group=16),
    "odd groups": Case(rows=((777,),), H=12, K=4, D=96, V=64, block=128, n_selected=3, query_group=2),
    "no sharing": Case(rows=((1100,),), H=4, K=4, D=64, V=64, block=16, n_selected=20),
    "groups of 4": Case(rows=((2100,), (2100,)), H=16, K=4, D=64, V=64, block=64, n_selected=16),
    "groups of 4, packed": Case(rows=((1, 900, 1199), (2100,)), H=16, K=4, D=64, V=64, block=64, n_selected=16),
    "groups of 1": Case(rows=((1100,),), H=4, K=4, D=128, V=128, block=64, n_selected=12),
    "groups of 2, two queries, rotary": Case(
        rows=((1500,),), H=16, K=8, D=64, V=64, R=32, block=32, n_selected=20, query_group=2
    ),
    "groups of 8, long blocks": Case(rows=((1300,),), H=16, K=2, D=96, V=80, block=128, n_selected=6),
}


def inputs(case: Case, device="cpu", dtype=torch.float32):
    """Leaves, upstream gradient, chosen blocks (the query's own, the rest at random, some places empty), documents."""
    generator = torch.Generator().manual_seed(17)
    B, T = len(case.rows), sum(case.rows[0])
    shapes = [(case.H, case.D), (case.K, case.D), (case.K, case.V)] + [(case.H, case.R), (case.R,)] * bool(case.R)
    leaves = [torch.randn(B, T, *s, generator=generator).to(device, dtype).requires_grad_() for s in shapes]
    do = torch.randn(B, T, case.H, case.V, generator=generator).to(device, dtype)
    documents = Documents.from_cu_seqlens(torch.tensor([0, *sum(case.rows, ())]).cumsum(0), B, T)
    first_BG = documents.groups(case.query_group)[0].long()
    if all(len(lengths) == 1 for lengths in case.rows):
        documents, first_BG = None, torch.arange(0, T, case.query_group).expand(B, -1)
        own_BG = first_BG // case.block
    else:
        own_BG = documents.position_BT.gather(1, first_BG.clamp(0)) // case.block
    n = math.ceil(T / case.block)
    noise = torch.rand(*own_BG.shape, case.K, n, generator=generator)
    block_M = torch.arange(n)
    own = own_BG[:, :, None, None]
    noise = torch.where(block_M == own, 2.0, noise).masked_fill(block_M > own, -1.0).masked_fill(noise < 0.1, -1.0)
    best = noise.topk(min(n, case.n_selected), -1)
    chosen = torch.where((best.values < 0) | (first_BG < 0)[:, :, None, None], n, best.indices).sort(-1).values
    chosen = torch.where(chosen == n, -1, chosen).int()
    chosen = torch.nn.functional.pad(chosen, (0, case.n_selected - chosen.shape[-1]), value=-1)
    return leaves, do, chosen.to(device), documents.to(device) if documents else None


def run(case: Case, leaves, do, chosen, documents, impl):
    """The output and the gradient of each leaf."""
    q, k, v, *rope = leaves
    options = {"q_rope": rope[0], "k_rope": rope[1]} if rope else {}
    o = selection_attention(
        q, k, v, chosen, **options, selection_block=case.block, query_group=case.query_group, scale=case.scale,
        documents=documents, impl=impl,
    )  # fmt: skip
    return [o, *torch.autograd.grad(o, leaves, do)]


def wide(leaves, do, dtype=torch.float64):
    return [x.detach().to(dtype).requires_grad_() for x in leaves], do.to(dtype)


def error(found, expected) -> float:
    expected = expected.double()
    return ((found.double() - expected).norm() / (expected.norm() + 0.1)).item()  # some gradients are nearly 0


def check_against(expected, found, leaves, do, scale: float) -> None:
    """Within 2e-6, relative; a gradient that is exactly 0, within float32's rounding of what cancels in it.

    A query that sees one key has dq = scale * (do . v - do . o) * k: two sums of the same products, the same number,
    rounded differently. 2.6e-7 was seen where they are 10.
    """
    q, k, *_ = leaves
    term = scale * (do.double() * expected[0]).sum(-1).norm().item()
    terms = [0.0, term * k.norm().item(), term * q.norm().item(), *[0.0] * (len(found) - 3)]
    for i, (a, b, size) in enumerate(zip(found, expected, terms, strict=True)):
        if b.any():
            assert error(a, b) <= 2e-6, i
        else:
            assert a.norm().item() <= torch.finfo(torch.float32).eps * size, i


def small():
    slow = ("more places than blocks", "documents", "blocks of 64", "blocks of 128")
    for name, case in SMALL.items():
        yield pytest.param(case, id=name, marks=[pytest.mark.slow] if name in slow else [])


@pytest.mark.slow
@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize("case", list(small()))
def test_small(case, poisoned):
    leaves, do, chosen, documents = inputs(case)
    with poisoned():
        found = run(case, leaves, do, chosen, documents, "triton")
    expected = run(case, *wide(leaves, do), chosen, documents, "reference")
    check_against(expected, found, leaves, do, case.scale or (case.D + case.R) ** -0.5)


@pytest.fixture(autouse=True)
def short_rows_too(monkeypatch):
    """The shape of a query group alone chooses the kernels, not the length of the rows."""
    if importlib.util.find_spec("triton"):
        from zoo.kernels.selection import op

        monkeypatch.setattr(op, "MIN_TOKENS", 1)


@pytest.fixture
def by_key(monkeypatch):
    """Forward and dq by key block, whatever the shape."""
    from zoo.kernels.selection import op

    monkeypatch.setattr(op, "by_key", lambda *arguments: True)


@pytest.mark.thinned(2)
@pytest.mark.interp
@pytest.mark.parametrize(
    "name",
    [
        *("one token", "groups of 3 heads, rotary", "blocks of 64", "documents"),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("one head a key head", "short documents")),
    ],
)
def test_by_key(name, by_key, poisoned):
    test_small(SMALL[name], poisoned)


@pytest.mark.slow
@pytest.mark.interp
@pytest.mark.parametrize("rows", [((37,),), ((9, 12), (21,))], ids=["one document", "documents"])
def test_by_key_in_pieces(rows, by_key, monkeypatch, poisoned):
    """Partial results of 16 query groups at a time."""
    from zoo.kernels.selection import op_partial

    monkeypatch.setattr(op_partial, "WORKSPACE", 1)
    test_small(Case(rows=rows, n_selected=3), poisoned)


@dataclass
class Indices:
    """What was seen of the inverted indices: those that were built, and into how many a room was given to keep them."""

    built: int = 0
    kept: int = 0


@pytest.fixture
def indices(monkeypatch):
    from zoo.kernels.selection import op_by_key

    seen, build = Indices(), op_by_key.inverted_index

    def counted(*arguments, room=None, **options):
        seen.built, seen.kept = seen.built + 1, seen.kept + (room is not None)
        return build(*arguments, room=room, **options)

    monkeypatch.setattr(op_by_key, "inverted_index", counted)
    return seen


def pieces_of(case: Case, leaves, chosen, documents, dtype=torch.float32) -> tuple[list, list[int]]:
    """The pieces of forward and backward, and the numbers that are kept of the index of each."""
    from zoo.kernels.selection import op_by_query, op_partial

    q, k, v, *rope = leaves
    q_rope = rope[0] if rope else None
    size = op_by_query.constants(q, k, v, q_rope, chosen, case.block, case.query_group, documents is not None)
    plan = op_partial.plan_of(q.shape[0], chosen.shape[1], size, dtype)
    return plan, op_partial.kept_lengths(plan, size, q.shape[1], documents.max_documents if documents else 1)


KEPT = {  # a case, the bytes of its workspace, the number of pieces
    "one piece": (Case(rows=((21,), (21,)), K=2, query_group=2), 2**30, 1),
    "two rows, one row": (Case(rows=((20,),) * 3), 45 * 256, 2),
    "wider values": (Case(rows=((20,),) * 3, V=32), 45 * 256, 3),
    "wider queries, documents": (Case(rows=((3, 17), (20,), (11, 9)), R=16), 45 * 256, 3),
    "parts of rows": (Case(rows=((37,), (37,))), 1, 6),
    "parts of rows, documents": (Case(rows=((9, 12), (21,)), n_selected=3), 1, 4),
}


@pytest.mark.interp
@pytest.mark.parametrize("name", KEPT)
def test_backward_takes_the_indices_of_forward(name, by_key, indices, monkeypatch, poisoned):
    """The bits are those of gradients that build the indices again, and no index is built twice."""
    from zoo.kernels.selection import op_partial

    case, workspace, n_pieces = KEPT[name]
    monkeypatch.setattr(op_partial, "WORKSPACE", workspace)
    leaves, do, chosen, documents = inputs(case)
    assert len(pieces_of(case, leaves, chosen, documents)[0]) == n_pieces
    with poisoned():
        found = run(case, leaves, do, chosen, documents, "triton")
    assert (indices.built, indices.kept) == (n_pieces, n_pieces)

    backward = op_partial.backward
    monkeypatch.setattr(op_partial, "backward", lambda *a: backward(*a[:-1], a[-1].new_empty(0)))
    with poisoned():
        again = run(case, leaves, do, chosen, documents, "triton")
    assert (indices.built, indices.kept) == (3 * n_pieces, 2 * n_pieces)
    assert all(x.any() for x in found)
    for a, b in zip(found, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.interp
def test_indices_are_kept_where_gradients_are_recorded(by_key, indices, monkeypatch):
    from zoo.kernels.selection import op

    kept, eager = [], op._by_key.eager

    def noted(*arguments):
        output = eager(*arguments)
        kept.append(output[2].numel())
        return output

    monkeypatch.setattr(op, "_by_key", op._by_key._replace(eager=noted))
    case = Case(rows=((21,),))
    leaves, _, chosen, _ = inputs(case)

    def attend(*tensors):
        selection_attention(*tensors, chosen, selection_block=16, impl="triton")

    with torch.no_grad():
        attend(*leaves)
    with torch.inference_mode():
        attend(*leaves)
    attend(*(x.detach() for x in leaves))
    assert (kept, indices.built, indices.kept) == ([0, 0, 0], 3, 0)
    for i in range(3):
        attend(*(x if i == j else x.detach() for j, x in enumerate(leaves)))
    assert (kept[3:], indices.kept) == (pieces_of(case, leaves, chosen, None)[1] * 3, 3)


@pytest.mark.interp
@pytest.mark.parametrize(("B", "T"), [(4, 32768), (16, 8192)])
def test_what_is_kept_is_as_large_as_the_choice(B, T):
    """Of nsa_340m: an eighth of the outputs, which are kept too."""
    case = Case(rows=((T,),) * B, H=16, K=4, D=64, V=64, block=64, n_selected=16)
    q, k = (torch.empty(B, T, n, 64, dtype=torch.bfloat16, device="meta") for n in (16, 4))
    chosen = torch.empty(B, T, 4, 16, dtype=torch.int32, device="meta")
    lengths = pieces_of(case, [q, k, k], chosen, None, torch.bfloat16)[1]
    assert chosen.numel() < sum(lengths) < 1.01 * chosen.numel()
    assert 8 * 4 * sum(lengths) < 1.01 * 2 * q.numel()


@pytest.mark.interp
@pytest.mark.parametrize("rows", [((20,),) * 3, ((3, 17), (20,), (11, 9))], ids=["one document", "documents"])
def test_the_operator_by_key(rows, indices, monkeypatch):
    """It returns what it announces to a compiler, keeps nothing, and its gradients are those of eager mode."""
    from zoo.kernels.selection import op, op_partial

    monkeypatch.setattr(op_partial, "WORKSPACE", 45 * 256)
    case = Case(rows=rows)
    leaves, do, chosen, documents = inputs(case)
    first = start = None
    if documents is not None:
        first, start = documents.groups(1)[0].contiguous(), documents.start_BT.contiguous()
    sizes = [16, 1, documents.max_documents if documents else 1]
    arguments = *leaves, None, None, chosen, first, start, sizes, 0.25, False
    torch.library.opcheck(op._by_key.op, arguments, test_utils=("test_schema", "test_faketensor"))
    indices.built = 0
    o, _, kept = op._by_key.op(*arguments)
    found = [o, *torch.autograd.grad(o, leaves, do)]
    assert (indices.built, kept.numel()) == (4, 0)
    o = op._by_key.eager(*arguments[:-1], True)[0]
    for a, b in zip(found, [o, *torch.autograd.grad(o, leaves, do)], strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.interp
def test_a_compiled_graph_builds_the_indices_again(by_key, indices):
    case = Case(rows=((21,),))
    leaves, do, chosen, _ = inputs(case)
    expected = run(case, leaves, do, chosen, None, "triton")
    indices.built = indices.kept = 0
    forward = torch.compile(
        lambda q, k, v: selection_attention(q, k, v, chosen, selection_block=16, impl="triton"),
        fullgraph=True,
        backend="aot_eager",
    )
    o = forward(*leaves)
    for a, b in zip([o, *torch.autograd.grad(o, leaves, do)], expected, strict=True):
        assert torch.equal(a, b)
    assert (indices.built, indices.kept) == (2, 0)


@pytest.mark.interp
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_by_key(reentrant, by_key, indices):
    case = Case(rows=((21,),))
    leaves, do, chosen, _ = inputs(case)
    expected = run(case, leaves, do, chosen, None, "triton")
    indices.built = 0

    def attend(*tensors):
        return selection_attention(*tensors, chosen, selection_block=16, impl="triton")

    o = checkpoint(attend, *leaves, use_reentrant=reentrant)
    o.backward(do)
    assert indices.built == 2  # one for each forward pass
    for a, b in zip([o, *(x.grad for x in leaves)], expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.interp
@pytest.mark.parametrize("size", [1e-3, 2e4])
def test_partials_in_float16_keep_the_range(size, by_key, monkeypatch):
    """A sum of 64 values of 2e4 is beyond float16's largest number; gradients may be any size."""
    from zoo.kernels.selection import op_partial

    monkeypatch.setattr(op_partial, "partial_dtype", lambda dtype: torch.float16)
    case = Case(rows=((70,),), block=64)
    (q, k, v), do, chosen, _ = inputs(case)
    leaves, do = [q, k, (v * size).detach().requires_grad_()], do * size**2
    found = run(case, leaves, do, chosen, None, "triton")
    expected = run(case, *wide(leaves, do), chosen, None, "reference")
    for a, b in zip(found, expected, strict=True):
        assert ((a - b).norm() / b.norm()).item() < 3e-4


@pytest.mark.interp
def test_the_shape_chooses(monkeypatch):
    from zoo.kernels.selection import op
    from zoo.kernels.selection.op import by_key

    monkeypatch.setattr(op, "MIN_TOKENS", 8)

    def chosen(H=16, K=4, D=64, dtype=torch.bfloat16, block=64, query_group=1, scale=0.1, T=4):
        q, k = torch.empty(2, T, H, D, dtype=dtype), torch.empty(2, T, K, D, dtype=dtype)
        return by_key(q, k, k, None, block, query_group, scale)

    assert all([chosen(), chosen(H=32), chosen(K=16, D=128), chosen(query_group=2, block=32)])
    assert not any([chosen(H=64), chosen(query_group=4), chosen(D=256), chosen(block=16), chosen(dtype=torch.float32)])
    assert not chosen(T=3)  # 6 tokens
    assert not chosen(scale=-0.1)  # the largest score would not be the largest exponent


BY_ENTRY = {  # a query group has 9 to 64 rows, blocks have 16 keys
    "one entry a pass, rotary": Case(rows=((48,),), H=8, K=2, R=16, query_group=4, n_selected=3),
    "two entries a pass": Case(rows=((40,), (40,)), H=4, query_group=4, n_selected=3),
    "heads 128 wide": Case(rows=((24,),), H=4, D=128, V=80, query_group=4),
    "32 rows": Case(rows=((40,),), H=8, query_group=4),
    "32 wide rows": Case(rows=((21,),), H=8, D=128, query_group=4),
    "64 wide rows": Case(rows=((18,),), H=16, D=80, query_group=4),
    "a last group of fewer tokens": Case(rows=((39,),), H=4, D=24, query_group=4),
    "groups of 12 rows": Case(rows=((40,),), H=3, R=16, query_group=4),
    "documents": Case(rows=((9, 28), (37,)), H=8, K=2, query_group=4, n_selected=3),
    "documents of whole groups and others": Case(rows=((8, 21, 11), (40,)), H=4, query_group=4),
    "short documents": Case(rows=((1, 1, 5, 3, 17, 1, 9), (30, 1, 6)), H=4, R=16, query_group=4),
}


@pytest.mark.interp
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=pytest.mark.thinned(2)) for name, case in BY_ENTRY.items()]
)
def test_by_entry(case, monkeypatch, poisoned):
    """As near to float64 as the kernel across entries, in float16: the interpreter multiplies no bfloat16."""
    from zoo.kernels.selection import op_by_key

    leaves, do, chosen, documents = inputs(case, dtype=torch.float16)
    expected = run(case, *wide(leaves, do), chosen, documents, "reference")
    served = {}
    for by_entry in (True, False):
        sums = op_by_key.partial_sums_by_entry

        def counted(*arguments, sums=sums, by_entry=by_entry):
            served[by_entry] = True
            return sums(*arguments)

        monkeypatch.setattr(op_by_key, "partial_sums_by_entry", counted)
        if not by_entry:
            monkeypatch.setattr(op_by_key, "by_entry", lambda *arguments: False)
        with poisoned():
            found = run(case, leaves, do, chosen, documents, "triton")
        for a, b in zip(found, expected, strict=True):
            assert error(a, b) <= 2e-3
    assert served == {True: True}


@pytest.mark.interp
def test_chunks_grow_with_long_lists_by_entry(monkeypatch, poisoned):
    """A list has MAX_CHUNKS chunks at most; with one, a program adds up the whole list."""
    from zoo.kernels.selection import op_by_key

    case = BY_ENTRY["two entries a pass"]
    leaves, do, chosen, _ = inputs(case, dtype=torch.float16)
    expected = run(case, *wide(leaves, do), chosen, None, "reference")
    chunks = []
    sums = op_by_key.partial_sums_by_entry

    def counted(*arguments):
        chunks.append((arguments[8].list_of >= 0).sum().item())
        return sums(*arguments)

    monkeypatch.setattr(op_by_key, "partial_sums_by_entry", counted)
    for most in (32, 1):
        monkeypatch.setattr(op_by_key, "MAX_CHUNKS", most)
        with poisoned():
            found = run(case, leaves, do, chosen, None, "triton")
        assert max(error(a, b) for a, b in zip(found, expected, strict=True)) <= 2e-3
    assert chunks[1] < chunks[0]


@pytest.mark.interp
@pytest.mark.parametrize("n_lists", [160, *(pytest.param(n, marks=pytest.mark.slow) for n in (2**16 - 8, 2**16))])
def test_index_on_both_sides_of_16_bits(n_lists):
    """Every list has its entries in the order of the rows, whatever number stands for a list in the sort."""
    from zoo.kernels.selection import op_by_key

    B, S, n = 2, 2, 4  # rows of 4 blocks, each with one query group of 16 tokens
    K = n_lists // (B * n)
    chosen = torch.randint(-1, n + 1, (B, n, K, S), generator=torch.Generator().manual_seed(17), dtype=torch.int32)
    size = {"K": K, "S": S, "G": 1, "BLOCK": 16, "QUERY_GROUP": 16}
    index = op_by_key.inverted_index(chosen, None, None, size, 16 * n, 1)

    i_b, i_g, i_k, i_s = ((chosen >= 0) & (chosen <= torch.arange(n)[:, None, None])).nonzero(as_tuple=True)
    i_l = (i_b * K + i_k) * n + chosen[i_b, i_g, i_k, i_s]
    order = i_l.argsort(stable=True)
    place = ((i_b * n + i_g) * K + i_k) * S + i_s
    assert index.begin.diff().tolist() == torch.bincount(i_l, minlength=n_lists).tolist()
    assert index.entry[: len(order)].tolist() == (i_g * 16 * 32 + 16)[order].tolist()
    assert index.place[: len(order)].tolist() == place[order].tolist()
    assert sorted(set(index.list_of.tolist()) - {-1}) == i_l.unique().tolist()


@pytest.mark.interp
@pytest.mark.parametrize("R", [0, 16])
def test_another_document_that_is_not_finite_changes_nothing(R):
    """Its last block of keys reaches into the next document; nothing of that may enter a product."""
    case = Case(rows=((9, 31),), H=4, R=R, query_group=4)
    leaves, do, chosen, documents = inputs(case, dtype=torch.float16)
    expected = run(case, leaves, do, chosen, documents, "triton")
    for i, bad in ((i, bad) for i in range(len(leaves)) for bad in (math.nan, math.inf)):
        spoilt = [x.detach().clone() for x in leaves]
        spoilt[i][:, 9:] = bad
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of numpy, which interprets the kernels
            found = run(case, [x.requires_grad_() for x in spoilt], do, chosen, documents, "triton")
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a[:, :9], b[:, :9]), (i, bad)


@pytest.mark.interp
def test_a_query_that_is_not_finite_leaves_the_outputs_of_the_others():
    """Also of those of its own query group."""
    case = Case(rows=((40,),), H=4, query_group=4)
    leaves, _, chosen, _ = inputs(case, dtype=torch.float16)
    q, k, v = (x.detach() for x in leaves)
    options = {"selection_block": 16, "query_group": 4, "impl": "triton"}
    expected = selection_attention(q, k, v, chosen, **options)
    q[:, 7] = math.nan
    found = selection_attention(q, k, v, chosen, **options)
    assert found[:, 7].isnan().all()
    others = torch.arange(40) != 7
    assert torch.equal(found[:, others], expected[:, others])


@pytest.mark.interp
@pytest.mark.parametrize(
    ("change", "served"),
    [
        (dict(), True),
        (dict(H=3), True),
        (dict(H=2), False),
        (dict(H=8), True),
        (dict(H=16), False),
        (dict(H=16, D=80), True),
        (dict(H=32, D=80), False),
        (dict(block=32), False),
        (dict(D=160), False),
    ],
)
def test_the_shape_chooses_by_entry(change, served):
    from zoo.kernels.selection import op_by_key, op_by_query

    case = Case(rows=((16,),), **dict(H=4, query_group=4) | change)
    (q, k, v), _, chosen, _ = inputs(case)
    size = op_by_query.constants(q, k, v, None, chosen, case.block, case.query_group, False)
    assert op_by_key.by_entry(size, 2) == served
    assert not op_by_key.by_entry(size, 4)


@pytest.mark.slow
@pytest.mark.interp
def test_long_lists_are_cut(monkeypatch, poisoned):
    from zoo.kernels.selection import op_by_key

    monkeypatch.setattr(op_by_key, "ROWS_PER_PROGRAM", 16)
    monkeypatch.setattr(op_by_key, "MAX_CHUNKS", 3)
    test_small(Case(rows=((40,),), query_group=1), poisoned)


@pytest.mark.interp
def test_strides():
    """Heads before tokens, keys and values as parts of one tensor, a broadcast upstream gradient."""
    case = Case(rows=((21,),), H=4, K=2, query_group=4)
    (q, k, v), _, chosen, _ = inputs(case)
    whole = torch.cat([k, v], -1).detach().requires_grad_()
    turned = q.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    strided = [turned, *whole.split([16, 16], -1)]
    found = run(case, strided, torch.ones(1, 1, 1, 1).expand(1, 21, 4, 16), chosen, None, "triton")
    expected = run(case, *wide([q, k, v], torch.ones(1, 21, 4, 16)), chosen, None, "reference")
    assert [error(a, b) for a, b in zip(found, expected, strict=True)] == pytest.approx([0] * 4, abs=2e-6)


@pytest.mark.interp
def test_a_query_that_sees_nothing_yields_zeros():
    case = Case(rows=((16,),), query_group=4)
    leaves, do, chosen, _ = inputs(case)
    for x in run(case, leaves, do, torch.full_like(chosen, -1), None, "triton"):
        assert not x.any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [(dict(block=8), "blocks are of 16, 32, 64 or 128 tokens, not 8"), (dict(D=272), "up to 256 wide")],
)
def test_refusals(change, reason):
    case = Case(rows=((8,),), **change)
    with pytest.raises(ValueError, match=reason):
        run(case, *inputs(case), "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("case", REAL.values(), ids=REAL.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_real(case, dtype, poisoned):
    """Within twice the error of the reference in that dtype, which rounds its results alone; the same bits twice."""
    leaves, do, chosen, documents = inputs(case, "cuda", dtype)
    with poisoned():
        found = run(case, leaves, do, chosen, documents, "triton")
    expected = run(case, *wide(leaves, do), chosen, documents, "reference")
    naive = run(case, leaves, do, chosen, documents, "reference")
    for name, a, b, c in zip(["o", "q", "k", "v", "q_rope", "k_rope"], found, naive, expected, strict=False):
        assert error(a, c) <= 2 * error(b, c), name
    for a, b in zip(found, run(case, leaves, do, chosen, documents, "triton"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_compiles_into_one_graph():
    case = REAL["ansa, packed"]
    leaves, do, chosen, documents = inputs(case, "cuda", torch.bfloat16)
    forward = torch.compile(
        lambda q, k, v, q_rope, k_rope: selection_attention(
            q, k, v, chosen, q_rope=q_rope, k_rope=k_rope, selection_block=16, query_group=4, documents=documents
        ),
        fullgraph=True,
        backend="aot_eager",
    )
    o = forward(*leaves)
    found = [o, *torch.autograd.grad(o, leaves, do)]
    for a, b in zip(found, run(case, leaves, do, chosen, documents, "triton"), strict=True):
        assert torch.equal(a, b)
